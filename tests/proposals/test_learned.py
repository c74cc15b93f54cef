from importlib import resources
from itertools import pairwise

import numpy as np
import pytest

from wsseg_ray.proposals.learned import layers, perceive


@pytest.mark.parametrize("name", ["boundary", "arcs_plain", "arcs_trunk", "ranking_plain", "ranking_trunk"])
def test_layers_fit_together(name):
    network = layers(name)
    assert len(network) > 1
    for (weight, _), (following, _) in pairwise(network):
        assert following.shape[1] == len(weight)
    for weight, bias in network:
        assert weight.dtype == bias.dtype == np.float32
        assert bias.shape == weight.shape[:1]
        assert np.isfinite(weight).all() and np.isfinite(bias).all()
    assert len(network[-1][0]) == 1


def test_boundary_reads_all_conv_layers():
    assert layers("boundary")[0][0].shape == (32, 4224)


@pytest.mark.parametrize(("mode", "cues"), [("plain", 5), ("trunk", 6)])
def test_networks_know_their_features(mode, cues):
    assert layers(f"arcs_{mode}")[0][0].shape[1] == cues + 4
    assert layers(f"ranking_{mode}")[0][0].shape[1] == 3 * (4 + cues) + 18


def test_the_file_is_small():
    assert len((resources.files("wsseg_ray.proposals") / "learned.npz").read_bytes()) < 2**20


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
