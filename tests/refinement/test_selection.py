import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsseg_ray.refinement import KEEPS
from wsseg_ray.refinement.selection import Candidates, random, select

FOUR = Candidates(
    distance=np.array([3.0, 1.0, 2.0, 1.0]),
    norm=np.array([1.0, 5.0, 5.0, 2.0]),
    score=np.array([0.9, 0.6, 0.7, 0.9]),
    area=np.array([0.1, 0.2, 0.1, 0.4]),
    seed=[0],
)


@pytest.mark.parametrize(
    ("keep", "fraction", "kept"),
    [
        ("nearest", 0.5, [1, 3]),
        ("nearest", 0.25, [1]),
        ("farthest", 0.5, [0, 2]),
        ("farthest", 0.75, [0, 1, 2]),
        ("norm", 0.5, [1, 2]),
        ("norm", 0.25, [1]),
        ("score", 0.5, [0, 3]),
        ("score", 0.25, [0]),
        ("area", 0.5, [1, 3]),
        ("area", 0.75, [0, 1, 3]),
        ("nearest", 1.0, [0, 1, 2, 3]),
        ("farthest", 1e-12, [0]),
        ("score", 0.3, [0, 3]),
    ],
)
def test_select(keep, fraction, kept):
    assert np.flatnonzero(select(KEEPS.get(keep), fraction, FOUR)).tolist() == kept


def test_random_follows_its_seed():
    n = np.zeros(1000)
    seeds = ([0, 5, 1], [0, 5, 1], [0, 5, 2])
    first, again, other = (select(random, 0.5, Candidates(n, n, n, n, seed)) for seed in seeds)
    assert first.sum() == 500
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("keep", KEEPS.names)
def test_none_to_select_from(keep):
    empty = np.empty(0)
    assert select(KEEPS.get(keep), 0.5, Candidates(empty, empty, empty, empty, [0])).shape == (0,)


@given(st.integers(1, 300), st.integers(1, 100), st.sampled_from(KEEPS.names))
def test_keeps_the_ceiling_of_the_share(n, percent, keep):
    values = np.random.default_rng(n).normal(size=(4, n))
    assert select(KEEPS.get(keep), percent / 100, Candidates(*values, [0])).sum() == -(-n * percent // 100)
