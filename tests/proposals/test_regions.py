import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from wsseg_ray.proposals.regions import RegionProposals, from_flat, from_masks

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


def test_resized_takes_pixel_centres_and_drops_what_is_gone():
    superpixels = np.array([[0, 1, 2, 2]])
    membership = sparse.csr_array(np.array([[1, 0, 0], [0, 1, 1], [1, 0, 1]], np.float32))
    smaller, kept = RegionProposals(superpixels, membership).resized(1, 2)
    assert smaller.superpixels.tolist() == [[0, 1]]  # centres 1/4 and 3/4 of four columns: columns 1 and 3
    assert smaller.membership.toarray().tolist() == [[1, 1], [0, 1]]
    assert kept.tolist() == [1, 2]


def test_resized_larger(regions):
    larger, kept = regions.resized(4, 3)
    assert larger.superpixels.tolist() == [[0, 0, 1], [0, 0, 1], [2, 2, 1], [2, 2, 1]]
    assert (larger.membership != regions.membership).nnz == 0 and kept.tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [(0, 3), (3, 0), (-1, 3)])
def test_resized_refuses_nothing(regions, size):
    with pytest.raises(ValueError, match="resized"):
        regions.resized(*size)


def test_a_stored_zero_is_no_member_and_the_callers_matrix_stays():
    stored = sparse.csr_array((np.array([1, 0, 2], np.float32), ([0, 0, 1], [0, 1, 2])), shape=(2, 3))
    assert RegionProposals(SUPERPIXELS, stored).membership.toarray().tolist() == [[1, 0, 0], [0, 0, 1]]
    assert stored.data.tolist() == [1, 0, 2]


def test_from_flat_takes_read_only_rows_in_any_order():
    indptr, indices = np.array([0, 3], np.int32), np.array([2, 0, 2], np.int32)
    indptr.flags.writeable = indices.flags.writeable = False
    assert from_flat(SUPERPIXELS, indptr, indices).membership.toarray().tolist() == [[1, 0, 1]]


def test_from_flat_is_the_stored_form(regions):
    again = from_flat(regions.superpixels, regions.membership.indptr, regions.membership.indices)
    assert (again.superpixels == regions.superpixels).all()
    assert again.membership.toarray().tolist() == regions.membership.toarray().tolist()


@pytest.mark.parametrize(
    ("indptr", "indices"), [([0, 1], [3]), ([0, 1], [-1]), ([0, 2], [1]), ([1, 1], [1]), ([0, 2, 1], [0]), ([], [])]
)
def test_from_flat_refuses_broken_rows(indptr, indices):
    with pytest.raises(ValueError):
        from_flat(SUPERPIXELS, np.array(indptr, np.int32), np.array(indices, np.int32))


def test_from_masks_reads_an_iterable_and_refuses_what_does_not_fit():
    masks = np.array([[[1, 1, 0]], [[0, 0, 0]], [[0, 1, 1]]], bool)
    regions = from_masks(mask for mask in masks)
    assert [regions.mask(n).tolist() for n in range(len(regions))] == [[[True, True, False]], [[False, True, True]]]
    with pytest.raises(ValueError, match="no masks"):
        from_masks([])
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        from_masks([np.ones((1, 4), bool), np.ones((2, 2), bool)])


def test_from_masks_refuses_too_many_cells():
    pixels = np.arange(70_000)[None]
    with pytest.raises(ValueError, match="65536 superpixels"):
        from_masks(pixels >> bit & 1 == 1 for bit in range(17))


@pytest.mark.parametrize("count", [31, 32, 33, 64, 65, 100])
def test_from_masks_around_the_word_length(count):
    masks = np.random.default_rng(count).random((count, 9, 11)) < 0.3
    regions = from_masks(masks)
    assert (np.stack([regions.mask(n) for n in range(count)]) == masks).all()
    assert len(regions.areas) == len(np.unique(masks.reshape(count, -1), axis=1).T)


MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 6)))


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


@settings(max_examples=50)
@given(MASKS, st.integers(1, 9), st.integers(1, 9))
def test_resized_equals_resized_dense_masks(masks, height, width):
    regions = from_masks(masks)
    resized, kept = regions.resized(height, width)
    rows = np.floor((np.arange(height) + 0.5) * masks.shape[1] / height).astype(int)
    columns = np.floor((np.arange(width) + 0.5) * masks.shape[2] / width).astype(int)
    dense = np.array([regions.mask(n)[rows][:, columns] for n in range(len(regions))]).reshape(-1, height, width)
    assert kept.tolist() == np.flatnonzero(dense.any(axis=(1, 2))).tolist()
    for n, mask in enumerate(dense[kept]):
        assert (resized.mask(n) == mask).all()
