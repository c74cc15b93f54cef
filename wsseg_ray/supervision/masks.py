"""Rough masks (Sec. 3.3.2), as labels by superpixel."""

from __future__ import annotations

import numpy as np

from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.supervision.maps import map_iou


def rough_mask(
    regions: RegionProposals,
    maps: np.ndarray,
    scores: np.ndarray,
    labels: list[int],
    count: int = 10,
    min_area: float = 0.0,
    ranking: str = "sum",
    threshold: float = 0.3,
) -> np.ndarray:
    """The rough mask of a photo: the union of each class's best regions; where classes overlap the larger map wins.

    Arguments:
        regions: N proposals over S superpixels.
        maps: (K, S), the localization maps of the photo's classes.
        scores: (K, N), the HCP scores `s` of all proposals for these classes.
        labels: K classes, 0-based, at most 253.
        count: regions a class (Sec. 3.3.2: 10); fewer where there are not so many.
        min_area: regions under this share of the photo are not ranked; all are where none is left.
        ranking: `sum` is Eq. (5), `v = s + mean of p^k inside`; `map_iou` is the IoU with `p^k >= threshold * max p^k`.
        threshold: a share of the map's maximum, for `map_iou`.
    Returns (S,) uint8: 0 background, label + 1 a class. Equal regions rank in their order, best proposal first; equal
    maps give a superpixel to the class that comes first in `labels`. Costs K nnz(M).
    Raises ValueError on an unknown ranking.
    """
    if ranking not in ("sum", "map_iou"):
        raise ValueError(f"ranking '{ranking}' is neither sum nor map_iou")
    ranked = np.flatnonzero(regions.region_areas / regions.superpixels.size >= min_area)
    if len(ranked) == 0:
        ranked = np.arange(len(regions))
    maps = maps.astype(np.float64)
    # background lies below every map and above -1, the claim of a class on what its regions do not cover
    claims = np.full((1 + len(labels), len(regions.areas)), -1.0)
    claims[0] = -0.5
    for claim, p, s in zip(claims[1:], maps, scores, strict=True):
        value = s + regions.mean_inside(p) if ranking == "sum" else map_iou(regions, p, threshold)
        covered = regions.union(ranked[np.argsort(-value[ranked], kind="stable")[:count]])
        claim[covered] = p[covered]
    return np.array([0, *(label + 1 for label in labels)], np.uint8)[claims.argmax(axis=0)]
