import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from wsseg_ray.evaluation.iou import (
    THRESHOLDS,
    argmax_assignment,
    average_precision,
    confusion,
    iou,
    mean_average_precision,
    miou,
    region_iou,
    superpixel_confusion,
    superpixel_counts,
    threshold_assignment,
)


def test_confusion_by_hand():
    truth = np.array([[0, 0, 1], [2, 255, 1]], np.uint8)
    predicted = np.array([[0, 1, 1], [1, 0, 1]], np.uint8)
    matrix = confusion(predicted, truth, 4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(iou(matrix), [50, 50, 0, np.nan])
    assert miou(matrix) == pytest.approx(100 / 3)


def test_nothing_but_ignored_pixels():
    matrix = confusion(np.zeros((2, 2), int), np.full((2, 2), 255), 2)
    assert matrix.tolist() == [[0, 0], [0, 0]]
    assert np.isnan(iou(matrix)).all() and np.isnan(miou(matrix))
    assert confusion(np.empty((0, 3), int), np.empty((0, 3), int), 2).sum() == 0


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        ([[0, 255]], [[0, 255]], "prediction holds 0..255"),
        ([[0, 2]], [[0, 1]], "prediction holds 0..2"),
        ([[0, -1]], [[0, 1]], "prediction holds -1..0"),
        ([[0, 1]], [[0, 2]], "truth holds 0..2"),
        ([[0, 1]], [[-1, 1]], "truth holds -1..1"),
        ([[0, 1]], [[0], [1]], r"\(1, 2\), the truth \(2, 1\)"),
    ],
)
def test_confusion_refuses(predicted, truth, message):
    with pytest.raises(ValueError, match=message):
        confusion(np.array(predicted), np.array(truth), 2)


def test_superpixel_counts_by_hand():
    superpixels = np.array([[0, 0, 1], [2, 2, 1]], np.uint16)
    truth = np.array([[0, 1, 1], [255, 255, 1]], np.uint8)
    counts = superpixel_counts(superpixels, truth, 2)
    assert counts.tolist() == [[1, 1], [0, 2], [0, 0]]
    assert superpixel_confusion(np.array([1, 1, 0], np.uint8), counts).tolist() == [[0, 1], [0, 3]]
    assert superpixel_confusion(np.array([1, 255, 0], np.uint8), counts).sum() == counts[[0, 2]].sum(), "255: unknown"
    with pytest.raises(ValueError):
        superpixel_counts(superpixels, truth[:1], 2)


def test_region_iou_by_hand():
    counts = np.array([[2, 2, 0], [0, 4, 0], [6, 0, 0]])
    membership = sparse.csr_array(np.array([[1, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32))
    found = region_iou(membership, counts)
    np.testing.assert_allclose(found, np.array([[2 / 14, 6 / 8, 0], [6 / 8, 0, 0], [8 / 14, 6 / 14, 0]]))
    assert not region_iou(membership, np.zeros((3, 2), int)).any()


def test_argmax_assignment():
    maps = np.array([[0.5, 0.25, 0.25, 0.75, 0.0], [0.0, 0.5, 0.5, 0.75, 0.0]])
    # backgrounds: 0.5, 0.25, 0.25, 0, 1
    assert argmax_assignment(maps, [6, 1]).tolist() == [0, 2, 2, 7, 0]
    assert argmax_assignment(np.empty((0, 2)), []).tolist() == [0, 0]


def test_threshold_assignment():
    maps = np.array([[0.5, 0.25, 0.2, 0.75], [0.0, 0.5, 0.1, 0.75]])
    assert threshold_assignment(maps, [6, 1], 0.25).tolist() == [7, 2, 0, 7]
    assert threshold_assignment(maps, [6, 1], 0.6).tolist() == [0, 0, 0, 7]
    assert threshold_assignment(np.empty((0, 2)), [], 0.5).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_share_reaches_the_threshold_of_its_value_in_any_precision(dtype):
    shares = (np.arange(1, 20) / 20).astype(dtype)
    assert len(THRESHOLDS) == 19
    for n, threshold in enumerate(THRESHOLDS):
        assert threshold_assignment(shares[None], [0], threshold).tolist() == [0] * n + [1] * (19 - n)


def test_average_precision():
    assert average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True])) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(average_precision(np.array([0.9]), np.array([False])))
    scores = np.array([[0.9, 0.1], [0.1, 0.2]])
    found = mean_average_precision(scores, np.array([[True, False], [False, False]]))
    np.testing.assert_array_equal(found, [100, np.nan])


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_equals_pixel_by_pixel(seed, height, width, classes):
    rng = np.random.default_rng(seed)
    truth = rng.choice([*range(classes), 255], (height, width)).astype(np.uint8)
    superpixels = np.unique(rng.integers(0, 5, (height, width)), return_inverse=True)[1].reshape(height, width)
    assigned = rng.integers(0, classes, superpixels.max() + 1)
    predicted = assigned[superpixels]
    expected = np.zeros((classes, classes), int)
    for t, p in zip(truth.ravel(), predicted.ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    assert (confusion(predicted, truth, classes) == expected).all()
    counts = superpixel_counts(superpixels, truth, classes)
    assert (superpixel_confusion(assigned, counts) == expected).all()
    valid = truth != 255
    for k, value in enumerate(iou(expected)):
        either = ((truth == k) | (predicted == k)) & valid
        both = (truth == k) & (predicted == k)
        np.testing.assert_allclose(value, 100 * both.sum() / either.sum() if either.any() else np.nan)
