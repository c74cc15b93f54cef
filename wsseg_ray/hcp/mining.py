"""What regions learn from maps: which proposals of a photo show a class and which show none.

Image-level labels never say that a region is background, so grass can be "cow" wherever cows are. The maps of a trained
network do: what lies outside their cores is no object. Training on that is self-training, as OICR does from its best
box (Tang et al., CVPR 2017), here from the vote of all candidates.
"""

from __future__ import annotations

import numpy as np

from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.supervision.maps import map_iou

CORE = 0.5  # share of a map's maximum
SHOWS, SHOWS_NOT = 0.5, 0.2  # IoU with the core from which a region shows the class, and up to which it does not
SAMPLE = 32  # regions of either kind that a photo gives


def region_targets(regions: RegionProposals, maps: np.ndarray, labels: list[int], class_count: int) -> np.ndarray:
    """What every region should say to every class, by its IoU with the core of the class's map.

    Arguments:
        maps: (K, S), the maps of the photo's classes.
        labels: K classes, 0-based.
        class_count: C.
    Returns (N, C) int8: 1 shows the class, 0 does not, -1 is not known. A class that the photo lacks is 0. A class with
    an all-zero map is not known. Costs K nnz(M).
    """
    targets = np.zeros((len(regions), class_count), np.int8)
    for label, p in zip(labels, maps, strict=True):
        overlap = map_iou(regions, p, CORE)
        targets[:, label] = np.where(overlap >= SHOWS, 1, np.where((overlap > SHOWS_NOT) | (p.max() <= 0), -1, 0))
    return targets


def sample_regions(targets: np.ndarray, rng: np.random.Generator, count: int = SAMPLE) -> np.ndarray:
    """Sorted indices of at most `count` regions that show a class, and as many that are known to show none.

    Arguments:
        targets: (N, C) of `region_targets`.
    """
    kinds = ((targets == 1).any(axis=1), (targets == 0).all(axis=1))
    chosen = [rng.permutation(np.flatnonzero(kind))[:count] for kind in kinds]
    return np.sort(np.concatenate(chosen))
