import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from wsseg_ray.hcp.mining import region_targets, sample_regions
from wsseg_ray.proposals.regions import RegionProposals


@pytest.fixture
def regions() -> RegionProposals:
    """Five superpixels of four pixels: the first, the first two, the second to the last, the last, all."""
    superpixels = np.arange(5).repeat(4).reshape(5, 4)
    membership = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    return RegionProposals(superpixels, sparse.csr_array(np.array(membership, np.float32)))


def test_targets_by_hand(regions):
    maps = np.array([[1.0, 0.5, 0.4, 0.0, 0.0]])  # the core is the first two superpixels
    found = region_targets(regions, maps, [1], 3)
    assert found.dtype == np.int8
    assert found[:, 1].tolist() == [1, 1, 0, 0, -1]  # IoU 1/2, 1, 1/5, 0, 2/5
    assert not found[:, [0, 2]].any()


def test_a_map_of_zeros_says_nothing(regions):
    assert (region_targets(regions, np.zeros((1, 5)), [0], 1) == -1).all()


def test_regions_of_two_classes(regions):
    maps = np.array([[1.0, 1.0, 0, 0, 0], [0, 0, 0, 0, 0.2]])
    found = region_targets(regions, maps, [0, 1], 2)
    assert found.tolist() == [[1, 0], [1, 0], [0, -1], [0, 1], [-1, 0]]


def test_a_superpixel_is_in_the_core_of_one_class(regions):
    """Both maps reach half of their maximum in the second superpixel; the first map's share is larger."""
    maps = np.array([[1.0, 0.9, 0, 0, 0], [0, 0.1, 0.1, 0.2, 0.1]])
    found = region_targets(regions, maps, [0, 1], 2)
    assert found.tolist() == [[1, 0], [1, 0], [0, 1], [0, -1], [-1, 1]]  # the cores are 1-2 and 3-5


def test_a_class_without_a_superpixel_of_its_own_is_unknown(regions):
    maps = np.array([[1.0, 1.0, 1.0, 0, 0], [0, 0.2, 0, 0, 0]])  # of equal shares, the first class has the superpixel
    assert (region_targets(regions, maps, [0, 1], 2)[:, 1] == -1).all()


def test_sample_holds_both_kinds():
    targets = np.array([[1, 0], [0, 0], [-1, 0], [1, -1], [0, 0], [0, 1]], np.int8)
    assert sample_regions(targets, np.random.default_rng(0)).tolist() == [0, 1, 3, 4, 5]  # the third is not known
    few = sample_regions(targets, np.random.default_rng(0), 1)
    assert len(few) == 2 and (targets[few] == 1).any(axis=1).sum() == 1


def test_nothing_known():
    assert len(sample_regions(np.full((4, 2), -1, np.int8), np.random.default_rng(0))) == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 10))
def test_a_sample_is_known_and_follows_its_seed(seed, n, count):
    targets = np.random.default_rng(seed).integers(-1, 2, (n, 3)).astype(np.int8)
    chosen = sample_regions(targets, np.random.default_rng(seed), count)
    shown, background = (targets == 1).any(axis=1), (targets == 0).all(axis=1)
    assert (shown | background)[chosen].all() and len(np.unique(chosen)) == len(chosen)
    assert shown[chosen].sum() == min(count, shown.sum())
    assert background[chosen].sum() == min(count, background.sum())
    assert (chosen == sample_regions(targets, np.random.default_rng(seed), count)).all()
