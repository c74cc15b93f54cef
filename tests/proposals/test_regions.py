import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from wsseg_ray.proposals.regions import RegionProposals, from_masks

SUPERPIXELS = np.array([[0, 0, 1], [2, 2, 1]])
MEMBERSHIP = sparse.csr_array(np.array([[1, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32))


@pytest.fixture
def regions() -> RegionProposals:
    return RegionProposals(SUPERPIXELS, MEMBERSHIP)


def test_areas_and_boxes(regions):
    assert regions.areas.tolist() == [2, 2, 2]
    assert regions.region_areas.tolist() == [4, 2, 6]
    assert regions.boxes.tolist() == [[0, 0, 3, 2], [0, 1, 2, 2], [0, 0, 3, 2]]


def test_iou(regions):
    assert regions.iou().tolist() == [[1, 0, 4 / 6], [0, 1, 2 / 6], [4 / 6, 2 / 6, 1]]


def test_vote_union_and_mean(regions):
    assert regions.vote(np.array([0, 2])).tolist() == [1, 1, 0.5]
    assert regions.vote(np.array([], int)).tolist() == [0, 0, 0]
    assert regions.union(np.array([1])).tolist() == [False, False, True]
    assert regions.mean_inside(np.array([1.0, 3.0, 5.0])).tolist() == [2.0, 5.0, 3.0]


def test_no_proposals():
    empty = RegionProposals(SUPERPIXELS, sparse.csr_array((0, 3), dtype=np.float32))
    assert len(empty) == 0 and empty.boxes.shape == (0, 4) and empty.iou().shape == (0, 0)


@pytest.mark.parametrize(
    ("superpixels", "membership"),
    [
        (np.zeros((0, 3), int), MEMBERSHIP),
        (SUPERPIXELS * 1.0, MEMBERSHIP),
        (SUPERPIXELS - 1, MEMBERSHIP),
        (SUPERPIXELS * 2, MEMBERSHIP),
        (SUPERPIXELS, MEMBERSHIP[:, :2]),
        (SUPERPIXELS, sparse.csr_array(np.array([[1, 0, 0], [0, 0, 0]], np.float32))),
    ],
)
def test_refuses_what_does_not_fit(superpixels, membership):
    with pytest.raises(ValueError):
        RegionProposals(superpixels, membership)


MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 6)))


@settings(deadline=None)
@given(MASKS)
def test_algebra_equals_dense_masks(masks):
    regions = from_masks(masks)
    dense = masks[masks.any(axis=(1, 2))]
    assert len(regions) == len(dense)
    for n, mask in enumerate(dense):
        assert (regions.mask(n) == mask).all()
        ys, xs = np.nonzero(mask)
        assert regions.boxes[n].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert regions.region_areas.tolist() == dense.sum(axis=(1, 2)).tolist()
    intersection = (dense[:, None] & dense[None]).sum(axis=(2, 3))
    union = (dense[:, None] | dense[None]).sum(axis=(2, 3))
    np.testing.assert_allclose(regions.iou(), intersection / union)
    if len(dense):
        np.testing.assert_allclose(regions.vote(np.arange(len(dense)))[regions.superpixels], dense.mean(axis=0))
        assert (regions.union(np.arange(len(dense)))[regions.superpixels] == dense.any(axis=0)).all()
        values = np.arange(len(regions.areas)) ** 1.5
        expected = [values[regions.superpixels][mask].mean() for mask in dense]
        np.testing.assert_allclose(regions.mean_inside(values), expected)
        np.testing.assert_allclose(regions.mean_inside(values[:, None])[:, 0], expected)
