from importlib import resources
from itertools import pairwise

import numpy as np
import pytest

from wsseg_ray.proposals.boundaries import BOUNDARIES
from wsseg_ray.proposals.learned import PLAIN, layers, perceive

FILES = [PLAIN, *(BOUNDARIES.get(name).learned for name in BOUNDARIES.names)]


@pytest.mark.parametrize("name", ["boundary", "arcs", "ranking"])
@pytest.mark.parametrize("learned", FILES)
def test_layers_fit_together(learned, name):
    network = layers(learned, name)
    if (learned, name) == (PLAIN, "boundary"):
        assert network == []
        return
    assert len(network) > 1
    for (weight, _), (following, _) in pairwise(network):
        assert following.shape[1] == len(weight)
    for weight, bias in network:
        assert weight.dtype == bias.dtype == np.float32
        assert bias.shape == weight.shape[:1]
        assert np.isfinite(weight).all() and np.isfinite(bias).all()
    assert len(network[-1][0]) == 1


@pytest.mark.parametrize("learned", FILES)
def test_networks_know_their_features(learned):
    """The five cues of colour and texture, and the boundary where a backbone finds one."""
    cues = 5 if learned == PLAIN else 6
    assert layers(learned, "arcs")[0][0].shape[1] == cues + 4
    assert layers(learned, "ranking")[0][0].shape[1] == 3 * (4 + cues) + 18


def test_the_files_are_small_and_each_is_in_use():
    files = list((resources.files("wsseg_ray.proposals") / "perceptrons").iterdir())
    assert sorted(file.name for file in files) == sorted(f"{name}.npz" for name in FILES)
    assert sum(len(file.read_bytes()) for file in files) < 2**20


def test_perceive():
    network = [
        (np.array([[1, 0], [0, -1]], np.float32), np.array([0, 1], np.float32)),
        (np.array([[2, 3]], np.float32), np.array([-1], np.float32)),
    ]
    x = np.array([[1, 1], [-1, 0], [2, -1]])
    found = perceive(network, x)
    assert found.dtype == np.float32 and found.tolist() == [1, 2, 9]
    assert perceive(network, np.zeros((0, 2))).shape == (0,)
    assert perceive(network[1:], x).tolist() == [4, -3, 0]
