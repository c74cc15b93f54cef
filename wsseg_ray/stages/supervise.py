"""Stage `supervise`: localization maps (Eq. 2) and rough masks (Eq. 5) of every training photo. CPU tasks.

Where a photo has a true mask, the candidates and the supervision are compared with it here, superpixel by superpixel:
for the refinement in use, for no refinement, and for every other way to keep candidates. The true masks serve for
nothing else.
"""

from __future__ import annotations

import numpy as np

from wsseg_ray.evaluation import iou
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.recipe import KEEPS
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.refine import choose
from wsseg_ray.stages.rows import regions_of, truth_of
from wsseg_ray.stages.shards import Row, map_shards
from wsseg_ray.supervision.maps import localization_maps, normalize_max
from wsseg_ray.supervision.masks import rough_mask

TABLE = "supervision"
ASSIGNMENTS = 2 + len(iou.THRESHOLDS)  # the argmax of the maps, the rough mask, and the maps at each threshold


def run(job: Job) -> int:
    """Write `supervision/` for the refined photos; returns how many photos this call did."""
    return map_shards(job, "supervise", TABLE, dict.fromkeys(job.run.shards("refined")), _rows, _supervise)


def _rows(job: Job, shard: str, _: None) -> list[Row]:
    tables = [job.run.read_good(name, shard) for name in ("images", "proposals", "scores", "refined")]
    return [{k: v for table in tables for k, v in table[image_id].items()} for image_id in tables[-1]]


def _supervise(job: Job, row: Row) -> Row:
    regions, labels = regions_of(row), row["labels"].tolist()
    scores = row["scores"].reshape(len(labels), -1).astype(np.float64)
    maps, mask = _maps_and_mask(job, row, regions, scores, row["kept"])
    plain_maps, plain_mask = _maps_and_mask(job, row, regions, scores, np.ones(len(row["kept"]), bool))
    return {
        "labels": labels,
        "maps": maps,
        "mask": mask.tobytes(),
        "maps_unrefined": plain_maps,
        "mask_unrefined": plain_mask.tobytes(),
        **(_measures(job, row, regions, scores, (maps, mask)) if row["mask_uri"] else {}),
    }


def _maps_and_mask(
    job: Job, row: Row, regions: RegionProposals, scores: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    settings, labels = job.recipe.supervision, row["labels"].tolist()
    maps = localization_maps(regions, _by_label(row, kept))
    if settings.normalize == "max":
        maps = normalize_max(maps)
    # Stage `score` gives every label at least one candidate, so no class is left without a region.
    pools = _by_label(row, np.ones(len(kept), bool)) if settings.pool == "candidates" else None
    mask = rough_mask(
        regions, maps, scores, labels, settings.regions, settings.min_area, settings.ranking, settings.threshold, pools
    )
    return maps, mask


def _by_label(row: Row, chosen: np.ndarray) -> list[np.ndarray]:
    """Per label of the photo, the proposals among its candidates that are chosen (n,) bool."""
    return [row["candidate"][chosen & (row["candidate_label"] == label)] for label in row["labels"]]


def _measures(
    job: Job, row: Row, regions: RegionProposals, scores: np.ndarray, in_use: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """Comparison with the true mask.

    Returns `candidate_iou` (K,), the mean IoU in percent of each label's candidates with the class, and `quality`
    (1 + KEEPS, ASSIGNMENTS, C+1, C+1), confusion matrices in pixels, those of the supervision in use first.
    """
    classes, labels = len(job.classes) + 1, row["labels"].tolist()
    counts = iou.superpixel_counts(regions.superpixels, truth_of(job, row), classes)
    overlaps = 100 * iou.region_iou(regions.membership, counts)[:, 1:]
    candidate_iou = [overlaps[row["candidate"][row["candidate_label"] == label], label].mean() for label in labels]
    variants = [in_use]
    for keep in KEEPS:
        kept = np.ones(len(row["kept"]), bool)
        if keep != "none":
            for label, s in zip(labels, scores, strict=True):
                own = row["candidate_label"] == label
                kept[own] = choose(job, row, label, keep, row["distance"][own], s)
        variants.append(_maps_and_mask(job, row, regions, scores, kept))
    quality = [
        [iou.superpixel_confusion(assigned, counts) for assigned in _assignments(maps, mask, labels)]
        for maps, mask in variants
    ]
    return {"candidate_iou": np.array(candidate_iou), "quality": np.array(quality)}


def _assignments(maps: np.ndarray, mask: np.ndarray, labels: list[int]) -> list[np.ndarray]:
    thresholded = [iou.threshold_assignment(maps, labels, threshold) for threshold in iou.THRESHOLDS]
    return [iou.argmax_assignment(maps, labels), mask, *thresholded]
