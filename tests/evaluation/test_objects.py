import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from wsseg_ray.evaluation.objects import best_iou, objects, region_iou
from wsseg_ray.proposals.regions import RegionProposals

TRUTH = np.array(
    [
        [1, 1, 0, 2, 2],
        [1, 0, 255, 2, 0],
        [0, 1, 255, 0, 1],
    ]
)


def test_components_of_each_class_are_objects():
    assert objects(TRUTH, min_area=2).tolist() == [
        [1, 1, 0, 2, 2],
        [1, 0, -1, 2, 0],
        [0, 1, -1, 0, 0],
    ]


def test_small_components_are_background_and_void_is_left_out():
    assert objects(TRUTH, min_area=4).max() == 1
    assert (objects(np.full((2, 2), 255)) == -1).all()
    assert (objects(np.zeros((2, 2), int)) == 0).all()


def test_iou_by_hand():
    superpixels = np.array([[0, 0, 1], [0, 2, 1]])
    labels = np.array([[1, 1, 0], [0, 2, -1]])
    regions = RegionProposals(superpixels, sparse.csr_array([[1, 0, 0], [0, 1, 0], [1, 1, 1]]))
    np.testing.assert_allclose(region_iou(regions, labels), [[2 / 3, 0], [0, 0], [2 / 5, 1 / 5]])


def test_no_object_no_column():
    regions = RegionProposals(np.zeros((2, 2), int), sparse.csr_array([[1]]))
    assert region_iou(regions, np.zeros((2, 2), int)).shape == (1, 0)
    assert region_iou(regions, np.full((2, 2), -1)).shape == (1, 0)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_iou_is_that_of_dense_masks(seed):
    random = np.random.default_rng(seed)
    superpixels = np.unique(random.integers(0, 6, (5, 6)), return_inverse=True)[1].reshape(5, 6)
    members = random.random((4, superpixels.max() + 1)) < 0.5
    members[:, 0] = True
    regions = RegionProposals(superpixels, sparse.csr_array(members.astype(float)))
    labels = random.integers(-1, 3, (5, 6))
    labels[0, :2] = 1, 2
    for n, row in enumerate(region_iou(regions, labels)):
        mask = regions.mask(n) & (labels >= 0)
        for k, value in enumerate(row, 1):
            expected = (mask & (labels == k)).sum() / (mask | (labels == k)).sum()
            assert value == pytest.approx(expected)


def test_best_of_the_first_n():
    iou = np.array([[0.1, 0.5], [0.3, 0.2], [0.2, 0.9]])
    assert best_iou(iou, [1, 2, 3, 99]).tolist() == [[0.1, 0.5], [0.3, 0.5], [0.3, 0.9], [0.3, 0.9]]
    assert best_iou(np.empty((0, 2)), [1, 5]).tolist() == [[0, 0], [0, 0]]
