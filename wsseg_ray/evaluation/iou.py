"""IoU from one confusion matrix over a split, in pixels or by superpixel, and average precision.

Rows are the truth, columns the prediction, class 0 is background. Confusion matrices of parts of a split add up.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from wsseg_ray.supervision.maps import background

IGNORED = 255
THRESHOLDS = np.round(np.arange(0.05, 1.0, 0.05), 2)


def confusion(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by true and predicted class; pixels whose truth is 255 are left out.

    Arguments:
        predicted: (H, W) integers in 0..classes-1.
        truth: (H, W) integers in 0..classes-1, or 255.
        classes: their number, background included.
    Returns (classes, classes) int64.
    Raises ValueError where the shapes differ or a value is not a class (255 in the prediction is not a class).

    >>> confusion(np.array([[0, 1, 1]]), np.array([[0, 0, 1]]), classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    if predicted.size and (predicted.min() < 0 or predicted.max() >= classes):
        raise ValueError(f"the prediction holds {predicted.min()}..{predicted.max()}, the classes are 0..{classes - 1}")
    return _joint(predicted, truth, classes, classes).T


def superpixel_counts(superpixels: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each class in each superpixel, for `superpixel_confusion`.

    Arguments:
        superpixels: (H, W) integers, 0..S-1.
        truth: (H, W) integers in 0..classes-1, or 255, which is left out.
        classes: their number, background included.
    Returns (S, classes) int64. Costs one pass over the photo.
    Raises ValueError where the shapes differ or a true value is not a class.
    """
    return _joint(superpixels, truth, int(superpixels.max()) + 1, classes)


def superpixel_confusion(assigned: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`confusion` of a photo whose prediction is constant on every superpixel.

    Arguments:
        assigned: (S,) integers in 0..classes-1, the predicted class of each superpixel; 255: it does not count.
        counts: (S, classes) of `superpixel_counts`.
    Returns (classes, classes) int64. Costs S classes.
    """
    matrix = np.zeros((counts.shape[1], counts.shape[1]), np.int64)
    known = assigned != IGNORED
    np.add.at(matrix, assigned[known], counts[known])
    return matrix.T


def region_iou(membership: sparse.csr_array, counts: np.ndarray) -> np.ndarray:
    """IoU of every region with every class of the truth; pixels whose truth is 255 are left out.

    Arguments:
        membership: (N, S), the superpixels of each region.
        counts: (S, classes) of `superpixel_counts`.
    Returns (N, classes) float64 in 0..1; zeros where region and class have no pixel. Costs nnz(membership) classes.
    """
    intersection = membership @ counts.astype(np.float64)
    union = intersection.sum(axis=1, keepdims=True) + counts.sum(axis=0) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, in percent.

    Arguments:
        confusion: (classes, classes).
    Returns (classes,) float64; NaN for a class that is neither in the truth nor in the prediction.

    >>> iou(np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])).tolist()
    [50.0, 50.0, nan]
    """
    intersection = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    return 100 * np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def by_class(names: list[str], confusion: np.ndarray) -> dict[str, float]:
    """`iou` of each class, in percent, by name."""
    return dict(zip(names, iou(confusion).tolist(), strict=True))


def miou(confusion: np.ndarray) -> float:
    """Mean of `iou` over the classes that occur, in percent; NaN if no class occurs."""
    values = iou(confusion)
    present = ~np.isnan(values)
    return float(values[present].mean()) if present.any() else float("nan")


def argmax_assignment(maps: np.ndarray, labels: list[int]) -> np.ndarray:
    """The most probable class of each superpixel, with Eq. (2)'s background.

    Arguments:
        maps: (K, S) localization maps.
        labels: K classes, 0-based.
    Returns (S,) uint8: 0 background, label + 1 a class; ties go to background, then to the earlier of `labels`.
    """
    return _values(labels)[np.vstack([background(maps), maps]).argmax(axis=0)]


def threshold_assignment(maps: np.ndarray, labels: list[int], threshold: float) -> np.ndarray:
    """The class with the largest map value if the value reaches the threshold, otherwise background.

    Arguments:
        maps: (K, S) localization maps.
        labels: K classes, 0-based.
        threshold: above 0.
    Returns (S,) uint8: 0 background, label + 1 a class; ties go to the earlier of `labels`.
    """
    # The threshold gets the maps' type, so that a share of 1/20 stored as float16 reaches 0.05.
    reached = np.where(maps >= maps.dtype.type(threshold), maps, 0)
    return _values(labels)[np.vstack([np.zeros(maps.shape[1]), reached]).argmax(axis=0)]


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Average precision of a ranking by score (scikit-learn's, without interpolation).

    Arguments:
        scores: (n,) floats.
        positive: (n,) bool.
    Returns a number in [0, 1]; NaN without a positive. Costs n log n.
    """
    from sklearn.metrics import average_precision_score  # imported here: it would cost each process a second

    return float(average_precision_score(positive, scores)) if positive.any() else float("nan")


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of every class, in percent; its nanmean is the mAP.

    Arguments:
        scores: (n, C) floats.
        labels: (n, C) bool.
    Returns (C,) float64; NaN for a class without a positive.
    """
    return np.array([100 * average_precision(s, positive) for s, positive in zip(scores.T, labels.T, strict=True)])


def _values(labels: list[int]) -> np.ndarray:
    return np.array([0, *(label + 1 for label in labels)], np.uint8)


def _joint(values: np.ndarray, truth: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Pixels by value (0..count-1) and true class, (count, classes) int64."""
    if values.shape != truth.shape:
        raise ValueError(f"the map is {values.shape}, the truth {truth.shape}")
    valid = truth != IGNORED
    values, truth = values[valid].astype(np.int64), truth[valid].astype(np.int64)
    if truth.size and (truth.min() < 0 or truth.max() >= classes):
        raise ValueError(
            f"the truth holds {truth.min()}..{truth.max()}, the classes are 0..{classes - 1} and {IGNORED}"
        )
    return np.bincount(values * classes + truth, minlength=count * classes).reshape(count, classes)
