"""Stage `supervise`: localization maps (Eq. 2) and rough masks (Eq. 5) of every training photo. CPU tasks.

Where a photo has a true mask, the candidates and the supervision are compared with it here, superpixel by superpixel:
for the refinement in use, for no refinement, and for every other way to keep candidates. The true masks serve for
nothing else.
"""

# ruff: noqa: RUF009 (a column is a dataclass field with its type)

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from wsseg_ray.engine.stage import Job, Stage, Step, Work
from wsseg_ray.evaluation import iou
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.refinement import KEEPS
from wsseg_ray.report import Strip
from wsseg_ray.stages.pictures import chosen, files_of
from wsseg_ray.stages.rows import photo_of, regions_of, truth_of
from wsseg_ray.stages.selection import kept_candidates
from wsseg_ray.supervision import MASKS, READINGS, REFINERS, Evidence
from wsseg_ray.tables import (
    IMAGES,
    PROPOSALS,
    REFINED,
    SCORES,
    SUPERVISION,
    ScoreRow,
    SupervisionRow,
    array,
    number,
    text,
)

ASSIGNMENTS = 2 + len(iou.THRESHOLDS)  # the argmax of the maps, the rough mask, and the maps at each threshold
ALL = "none"  # the ablation's name for keeping all candidates
PAPERS = "votes"  # the paper's reading of the scores


@dataclass
class EvidenceRow(ScoreRow):
    """All that is known of a photo: columns of `images`, `proposals`, `scores` and `refined`."""

    uri: str = text("where the photo lies")
    digest: str = text("as in ImageRow")
    mask_uri: str = text('where the true mask lies, or ""')
    height: int = number("int32", "pixels")
    width: int = number("int32", "pixels")
    superpixels: np.ndarray = array("uint16", ("height", "width"), "(H, W) superpixel of each pixel")
    indptr: np.ndarray = array("int32", (-1,), "(N + 1,) of M (N, S) as CSR rows")
    indices: np.ndarray = array("int32", (-1,), "(nnz,) of M (N, S)")
    objectness: np.ndarray = array("float32", (-1,), "(N,) in 0..1")
    is_mask: np.ndarray = array("uint8", (-1,), "(N,) 1 where the proposal is a mask of SAM")
    distance: np.ndarray = array("float32", ("candidate",), "(n,) Eq. (1)")
    kept: np.ndarray = array("bool", ("candidate",), "(n,) whether the candidate is kept")


def _work(job: Job) -> Work[SupervisionRow]:
    return Work(SUPERVISION, evidence_rows, (Step(_supervise, SupervisionRow),))


def evidence_rows(job: Job, shard: str) -> list[EvidenceRow]:
    """All that is known of the photos of a shard."""
    images = job.run.read_good(job.table(IMAGES), shard, ["uri", "digest", "mask_uri"])
    columns = ["height", "width", "superpixels", "indptr", "indices", "objectness", "is_mask"]
    proposals = job.run.read_good(job.table(PROPOSALS), shard, columns)
    scores, refined = (job.run.read_good(job.table(table), shard) for table in (SCORES, REFINED))
    tables = (images, proposals, scores, refined)
    return [EvidenceRow(**{k: v for table in tables for k, v in vars(table[i]).items()}) for i in refined]


def evidence_of(job: Job, row: EvidenceRow, regions: RegionProposals, kept: np.ndarray) -> Evidence:
    """What is known of a photo before its scores are read, with the candidates that are kept (n,) bool."""
    labels = row.labels.tolist()
    return Evidence(
        regions,
        labels,
        row.scores.astype(np.float64),
        row.objectness,
        row.is_mask,
        _by_label(row, kept),
        _by_label(row, ~kept),
        np.zeros((len(labels), len(regions.areas))),
        partial(photo_of, job, row),
    )


def _supervise(job: Job, row: EvidenceRow) -> SupervisionRow:
    regions = regions_of(row)
    maps, mask = _maps_and_mask(job, row, regions, row.kept)
    plain_maps, plain_mask = _maps_and_mask(job, row, regions, np.ones(len(row.kept), bool))
    found = SupervisionRow(
        labels=row.labels, maps=maps, mask=mask, maps_unrefined=plain_maps, mask_unrefined=plain_mask
    )
    if row.mask_uri:
        found.candidate_iou, found.quality = _measures(job, row, regions, (maps, mask))
    return found


def _maps_and_mask(
    job: Job, row: EvidenceRow, regions: RegionProposals, kept: np.ndarray, reading: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Maps (K, S) and rough mask (S,) from the candidates that are kept (n,) bool.

    Arguments:
        reading: of the scores; "": that of the recipe.
    """
    settings, evidence = job.recipe.supervision, evidence_of(job, row, regions, kept)
    evidence = replace(evidence, maps=READINGS.get(reading or settings.reading)(evidence))
    for name in settings.refiners:
        evidence = replace(evidence, maps=REFINERS.get(name)(evidence))
    return evidence.maps, MASKS.get(settings.mask)(evidence, settings)


def _by_label(row: EvidenceRow, chosen: np.ndarray) -> list[np.ndarray]:
    """Per class of the photo, the proposals among its candidates that are chosen (n,) bool."""
    return [row.candidate[chosen & (row.candidate_label == label)] for label in row.labels]


def _measures(
    job: Job, row: EvidenceRow, regions: RegionProposals, in_use: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Comparison with the true mask.

    Returns `candidate_iou` (K,), the mean IoU in percent of each class's candidates with the class, and `quality`
    (2 + KEEPS + READINGS, ASSIGNMENTS, C + 1, C + 1), confusion matrices in pixels: of the supervision in use, of that
    from all candidates, of every way to keep candidates, and of every reading of the scores.
    """
    classes, labels = len(job.classes) + 1, row.labels.tolist()
    counts = iou.superpixel_counts(regions.superpixels, truth_of(job, row), classes)
    overlaps = 100 * iou.region_iou(regions.membership, counts)[:, 1:]
    candidate_iou = [overlaps[row.candidate[row.candidate_label == label], label].mean() for label in labels]
    variants = [in_use, _maps_and_mask(job, row, regions, np.ones(len(row.kept), bool))]
    for keep in KEEPS.variants():
        kept = np.ones(len(row.kept), bool)
        for label in labels:
            own = row.candidate_label == label
            kept[own] = kept_candidates(job, row, keep, label, row.distance[own])
        variants.append(_maps_and_mask(job, row, regions, kept))
    variants += [_maps_and_mask(job, row, regions, row.kept, reading) for reading in READINGS.names]
    quality = [
        [iou.superpixel_confusion(assigned, counts) for assigned in _assignments(maps, mask, labels)]
        for maps, mask in variants
    ]
    return np.array(candidate_iou), np.array(quality)


def _assignments(maps: np.ndarray, mask: np.ndarray, labels: list[int]) -> list[np.ndarray]:
    thresholded = [iou.threshold_assignment(maps, labels, threshold) for threshold in iou.THRESHOLDS]
    return [iou.argmax_assignment(maps, labels), mask, *thresholded]


def _metrics(job: Job) -> dict[str, Any]:
    classes, ways = len(job.classes) + 1, [ALL, *KEEPS.names]
    shape = (1 + len(ways) + len(READINGS.names), ASSIGNMENTS, classes, classes)
    total, photos = np.zeros(shape, np.int64), 0
    overlaps: list[list[float]] = [[] for _ in job.classes]
    for row in job.run.rows(SUPERVISION, ["error", "labels", "candidate_iou", "quality"]):
        if len(row.quality):
            total += row.quality.reshape(shape)
            photos += 1
            for label, overlap in zip(row.labels, row.candidate_iou, strict=True):
                overlaps[label].append(overlap)
    if not photos:
        return {"supervision": {"photos": 0}}
    settings, names = job.recipe.refinement, ["background", *job.classes]
    found = {
        "photos": photos,
        "keep": settings.keep if settings.enabled else ALL,
        "reading": job.recipe.supervision.reading,
        **_quality(total[0]),
        "candidate_iou": {
            name: float(np.mean(own)) if own else math.nan for name, own in zip(job.classes, overlaps, strict=True)
        },
        "candidate_miou": float(np.mean(np.concatenate(overlaps))),
        "iou": {
            "localization": iou.by_class(names, total[0, 0]),
            "localization_best": iou.by_class(names, total[0, 2 + _best(total[0])]),
            "rough_mask": iou.by_class(names, total[0, 1]),
        },
        "ablation": {keep: _quality(part) for keep, part in zip(ways, total[1 : 1 + len(ways)], strict=True)},
        "readings": {name: _quality(part) for name, part in zip(READINGS.names, total[1 + len(ways) :], strict=True)},
    }
    return {"supervision": found}


def _quality(confusions: np.ndarray) -> dict[str, float]:
    """mIoU of one variant's assignments (argmax, rough mask, thresholds), and the percentage of unknown pixels."""
    best = _best(confusions)
    return {
        "localization_miou": iou.miou(confusions[0]),
        "localization_best_miou": iou.miou(confusions[2 + best]),
        "localization_best_threshold": float(iou.THRESHOLDS[best]),
        "rough_mask_miou": iou.miou(confusions[1]),
        "rough_mask_unknown": float(100 - 100 * confusions[1].sum() / confusions[0].sum()),
    }


def _best(confusions: np.ndarray) -> int:
    return int(np.argmax([iou.miou(confusion) for confusion in confusions[2:]]))


def _strips(job: Job) -> list[Strip]:
    """Photos with their maps and rough mask; where the maps are not the paper's, the paper's stand beside them."""
    strips = []
    for shard, image, row in chosen(job, SUPERVISION, "train"):
        files = files_of(job, image)
        if files is None:
            continue
        (evidence,) = (one for one in evidence_rows(job, shard) if one.image_id == row.image_id)
        superpixels, labels = evidence.superpixels, [job.classes[label] for label in row.labels]
        maps = list(zip(labels, row.maps, strict=True))
        if job.recipe.supervision.reading != PAPERS:
            votes, _ = _maps_and_mask(job, evidence, regions_of(evidence), evidence.kept, PAPERS)
            maps = [pair for both in zip(maps, _named(labels, votes), strict=True) for pair in both]
        strips.append(
            Strip(
                row.image_id,
                "train",
                files[0],
                labels,
                maps=[(name, p.astype(np.float32)[superpixels]) for name, p in maps],
                rough=row.mask[superpixels],
                truth=files[1],
            )
        )
    return strips


def _named(labels: list[str], votes: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [(f"{label}, {PAPERS}", p) for label, p in zip(labels, votes, strict=True)]


STAGE = Stage(
    name="supervise",
    reads=("refined", "images", "proposals", "scores"),
    writes=SUPERVISION.folder,
    settings=lambda recipe: ["supervision"],
    table=SUPERVISION,
    work=_work,
    metrics=_metrics,
    strips=_strips,
)
