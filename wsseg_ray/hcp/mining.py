"""Targets for regions from localization maps: which proposals of a photo show a class and which show none.

Image-level labels never say that a region is background, so HCP can learn to call grass "cow". The localization maps of
a trained network do: outside their cores there is no object. Training on them is self-training. OICR uses its best box
for this (Tang et al., CVPR 2017); here the vote of all candidates is used.
"""

from __future__ import annotations

import numpy as np

from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.supervision.maps import iou_with, normalize_max

CORE = 0.5  # share of a map's maximum
SHOWS, SHOWS_NOT = 0.5, 0.2  # IoU with the core: a region shows the class from the first, and does not up to the second
SAMPLE = 32  # regions of each kind per photo


def region_targets(regions: RegionProposals, maps: np.ndarray, labels: list[int], class_count: int) -> np.ndarray:
    """The target of every region for every class, from its IoU with the core of the class's map.

    The core is where the map reaches `CORE` of its maximum. A superpixel in the cores of two classes belongs to the one
    whose map, as a share of its maximum, is larger: a rider's map and the horse's both cover the saddle. With cores
    that overlap the maps were one to three points worse (docs/supervision.md).

    Arguments:
        maps: (K, S), the localization maps of the photo's labels.
        labels: K classes, 0-based.
        class_count: C.
    Returns (N, C) int8: 1: the region shows the class; 0: it does not; -1: unknown. A class that is not in the photo
    is 0. A class without a core, as that of an all-zero map, is unknown. Costs K nnz(M).
    """
    targets = np.zeros((len(regions), class_count), np.int8)
    shares = normalize_max(maps)
    cores = (shares >= CORE) & (np.arange(len(labels))[:, None] == shares.argmax(axis=0))
    for label, core in zip(labels, cores, strict=True):
        overlap = iou_with(regions, core)
        unknown = (overlap > SHOWS_NOT) | (not core.any())
        targets[:, label] = np.where(overlap >= SHOWS, 1, np.where(unknown, -1, 0))
    return targets


def sample_regions(targets: np.ndarray, rng: np.random.Generator, count: int = SAMPLE) -> np.ndarray:
    """Sorted indices of at most `count` regions that show a class, and at most `count` known to show none.

    Arguments:
        targets: (N, C) of `region_targets`.
    """
    kinds = ((targets == 1).any(axis=1), (targets == 0).all(axis=1))
    chosen = [rng.permutation(np.flatnonzero(kind))[:count] for kind in kinds]
    return np.sort(np.concatenate(chosen))
