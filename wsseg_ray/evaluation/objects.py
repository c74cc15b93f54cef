"""How well proposals find objects: the best IoU among the first n (Pont-Tuset and Van Gool, ICCV 2015)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from wsseg_ray.evaluation import iou
from wsseg_ray.evaluation.iou import IGNORED
from wsseg_ray.proposals.regions import RegionProposals

CONNECTED = np.ones((3, 3), bool)  # pixels that touch at a corner are connected
NOT_COUNTED = -1


def objects(truth: np.ndarray, min_area: int = 200) -> np.ndarray:
    """The objects of a mask: the connected components of each class that have at least `min_area` pixels.

    Arguments:
        truth: (H, W) integers: 0 is background, 255 is left out of every count.
    Returns (H, W) int32: 1..K in the objects, -1 where the truth is 255, otherwise 0.
    """
    labels = np.where(truth == IGNORED, NOT_COUNTED, 0).astype(np.int32)
    count = 0
    for name in np.setdiff1d(truth, [0, IGNORED]):
        components, found = ndimage.label(truth == name, CONNECTED)
        for component in 1 + np.flatnonzero(np.bincount(components.ravel(), minlength=found + 1)[1:] >= min_area):
            count += 1
            labels[components == component] = count
    return labels


def region_iou(regions: RegionProposals, labels: np.ndarray) -> np.ndarray:
    """IoU of every proposal with every object, on the pixels that count.

    Arguments:
        labels: (H, W) integers from `objects`.
    Returns (N, K) float64. Costs one pass over the photo and a sparse product.
    """
    superpixel_count = len(regions.areas)
    counted = labels != NOT_COUNTED
    joint = labels[counted].astype(np.int64) * superpixel_count + regions.superpixels[counted]
    object_count = max(int(labels.max(initial=0)), 0)
    pixels = np.bincount(joint, minlength=(object_count + 1) * superpixel_count).reshape(-1, superpixel_count)
    return iou.region_iou(regions.membership, pixels.T)[:, 1:]


def best_iou(overlaps: np.ndarray, counts: list[int]) -> np.ndarray:
    """Best IoU of every object among the first n proposals, J_i: (counts, K); zeros where there is no proposal.

    Arguments:
        overlaps: (N, K) IoU, best proposal first.
        counts: numbers n of proposals, each at least 1.
    """
    if len(overlaps) == 0:
        return np.zeros((len(counts), overlaps.shape[1]))
    best = np.maximum.accumulate(overlaps, axis=0)
    return best[np.minimum(counts, len(overlaps)) - 1]
