"""Localization maps (Sec. 3.3.1) and Eq. (2), one number per superpixel; `p[superpixels]` is the map per pixel."""

from __future__ import annotations

import numpy as np

from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.supervision import Evidence


def localization_maps(regions: RegionProposals, kept: list[np.ndarray]) -> np.ndarray:
    """The localization map `p^k` of each class: the share of its kept candidates that cover a superpixel (Sec. 3.3.1).

    Arguments:
        regions: N proposals over S superpixels.
        kept: for each of the photo's K classes, the kept candidates: indices or a boolean mask (N,).
    Returns (K, S) float64 in [0, 1]; zeros for a class without kept candidates. Costs the superpixels of the kept
    candidates.

    Two proposals over three superpixels, both kept for the only class:

    >>> import numpy as np
    >>> from scipy import sparse
    >>> superpixels = np.array([[0, 1, 2]])
    >>> regions = RegionProposals(superpixels, sparse.csr_array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> localization_maps(regions, [np.array([0, 1])]).tolist()
    [[0.5, 1.0, 0.0]]
    """
    return np.array([regions.vote(proposals) for proposals in kept]).reshape(len(kept), len(regions.areas))


def normalize_max(maps: np.ndarray) -> np.ndarray:
    """Each map divided by its maximum in the photo.

    Arguments:
        maps: (K, S).
    Returns (K, S) float64; a map of zeros is not changed.

    >>> normalize_max(np.array([[0.2, 0.4], [0.0, 0.0]])).tolist()
    [[0.5, 1.0], [0.0, 0.0]]
    """
    peak = maps.max(axis=1, keepdims=True, initial=0)
    return np.divide(maps, peak, out=np.zeros(maps.shape), where=peak > 0)


def divide_by_max(evidence: Evidence) -> np.ndarray:
    """The refiner `max`: `normalize_max` of the photo's maps."""
    return normalize_max(evidence.maps)


def background(maps: np.ndarray) -> np.ndarray:
    """Eq. (2): `p^bg = max(0, 1 - sum_k p^k)`.

    Arguments:
        maps: (K, S).
    Returns (S,) float64 in [0, 1].

    >>> background(np.array([[0.5, 0.75, 0.0], [0.25, 0.75, 0.0]])).tolist()
    [0.25, 0.0, 1.0]
    """
    return np.maximum(0, 1 - maps.sum(axis=0, dtype=np.float64))


def map_iou(regions: RegionProposals, p: np.ndarray, threshold: float) -> np.ndarray:
    """IoU in pixels of every region with `p >= threshold * max p`.

    Arguments:
        p: (S,), one map.
        threshold: a share of the map's maximum, above 0.
    Returns (N,) float64; zeros for a map of zeros. Costs nnz(M).
    """
    return iou_with(regions, (p >= threshold * p.max()) & (p > 0))


def iou_with(regions: RegionProposals, chosen: np.ndarray) -> np.ndarray:
    """IoU in pixels of every region with the chosen superpixels (S,) bool, (N,) float64. Costs nnz(M)."""
    inside = (regions.areas * chosen).astype(np.float64)
    intersection = regions.membership @ inside
    return intersection / (regions.region_areas + inside.sum() - intersection)
