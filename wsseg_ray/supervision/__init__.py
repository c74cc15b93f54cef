"""Localization maps and rough masks (Sec. 3.3): the supervision of the segmentation networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    import numpy as np

    from wsseg_ray.proposals.regions import RegionProposals
    from wsseg_ray.recipe import SupervisionSection


@dataclass(frozen=True)
class Evidence:
    """The data of a photo from which its supervision is made.

    Arguments:
        regions: N proposals over S superpixels.
        labels: the photo's K classes.
        scores: (K, N) HCP scores of all proposals for these classes.
        objectness: (N,) in 0..1.
        is_mask: (N,) 1 where the proposal is a mask of SAM.
        kept: per class, the indices of the candidates that the refinement keeps.
        dropped: per class, the indices of the candidates that it drops.
        maps: (K, S) localization maps in 0..1, as far as they are made: a reading is given zeros.
        read_photo: returns the photo (H, W, 3) uint8; only this call reads it from storage.
    """

    regions: RegionProposals
    labels: list[int]
    scores: np.ndarray
    objectness: np.ndarray
    is_mask: np.ndarray
    kept: list[np.ndarray]
    dropped: list[np.ndarray]
    maps: np.ndarray
    read_photo: Callable[[], np.ndarray]


# The maps (K, S) of a photo from the scores of its proposals
Reading = Callable[[Evidence], "np.ndarray"]
# The refined maps (K, S) of a photo. The rough mask is made from them.
Refiner = Callable[[Evidence], "np.ndarray"]
# The rough mask (S,) uint8 of a photo: 0 is background, label + 1 a class, 255 not known
MaskMaker = Callable[[Evidence, "SupervisionSection"], "np.ndarray"]
# `(regions, p (S,) map of a class, s (N,) scores, threshold) -> (N,)`: the value by which regions are ranked
Ranking = Callable[["RegionProposals", "np.ndarray", "np.ndarray", float], "np.ndarray"]

READINGS: Registry[Reading] = Registry(
    "reading of the scores",
    {
        "votes": "wsseg_ray.supervision.readings:votes",
        "mean_score": "wsseg_ray.supervision.readings:mean_score",
    },
)
REFINERS: Registry[Refiner] = Registry("refiner of supervision", {"max": "wsseg_ray.supervision.maps:divide_by_max"})
MASKS: Registry[MaskMaker] = Registry(
    "way to make rough masks",
    {
        "regions": "wsseg_ray.supervision.masks:best_regions",
        "sure": "wsseg_ray.supervision.masks:sure_superpixels",
    },
)
RANKINGS: Registry[Ranking] = Registry(
    "ranking of regions",
    {
        "sum": "wsseg_ray.supervision.masks:score_and_map",
        "map_iou": "wsseg_ray.supervision.masks:iou_with_map",
    },
)
