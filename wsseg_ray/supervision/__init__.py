"""Localization maps and rough masks (Sec. 3.3): the supervision of the segmentation networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    import numpy as np

    from wsseg_ray.proposals.regions import RegionProposals


@dataclass(frozen=True)
class Evidence:
    """The data of a photo from which its maps are refined.

    Arguments:
        regions: N proposals over S superpixels.
        labels: the photo's K classes.
        maps: (K, S) localization maps in 0..1.
        scores: (K, N) HCP scores of all proposals for these classes.
        read_photo: returns the photo (H, W, 3) uint8; only this call reads it from storage.
    """

    regions: RegionProposals
    labels: list[int]
    maps: np.ndarray
    scores: np.ndarray
    read_photo: Callable[[], np.ndarray]


# The refined maps (K, S) of a photo. The rough mask is made from them.
Refiner = Callable[[Evidence], "np.ndarray"]
# `(regions, p (S,) map of a class, s (N,) scores, threshold) -> (N,)`: the value by which regions are ranked
Ranking = Callable[["RegionProposals", "np.ndarray", "np.ndarray", float], "np.ndarray"]

REFINERS: Registry[Refiner] = Registry("refiner of supervision", {"max": "wsseg_ray.supervision.maps:divide_by_max"})
RANKINGS: Registry[Ranking] = Registry(
    "ranking of regions",
    {
        "sum": "wsseg_ray.supervision.masks:score_and_map",
        "map_iou": "wsseg_ray.supervision.masks:iou_with_map",
    },
)
