"""What each way to make supervision costs per photo, and how good it is where a run has true masks.

    python benchmarks/supervision.py RUN [--photos 64]

`RUN` is a run directory that came at least to `supervise`. Some of its training photos, evenly spread, and those with
true masks first, pass every registered reading of the scores, every way to make rough masks, and the dense CRF on the
maps, on one thread. Milliseconds are the median over photos. Quality is mIoU in percent on the photos with true masks:
of maps at the threshold that the other half of these photos chose, of rough masks on the pixels that they do not leave
open, and of the CRF's labels from maps at the recipe's `object_from`. The masks are used for nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from wsseg_ray.engine.stage import Job, open_run
from wsseg_ray.evaluation import iou
from wsseg_ray.segmentation.crf import dense_crf
from wsseg_ray.stages.labels import crf_settings
from wsseg_ray.stages.rows import regions_of, truth_of
from wsseg_ray.stages.supervise import EvidenceRow, evidence_of, evidence_rows
from wsseg_ray.supervision import MASKS, READINGS, REFINERS, Evidence
from wsseg_ray.tables import REFINED


def rows(job: Job, count: int) -> list[EvidenceRow]:
    """Photos of the run, evenly spread; those with true masks where there are enough."""
    every = [row for shard in job.shards(REFINED) for row in evidence_rows(job, shard)]
    every = [row for row in every if row.mask_uri] or every
    count = min(count, len(every))
    return [every[i * len(every) // count] for i in range(count)]


class Costs:
    """Seconds of each named step, photo by photo."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def timed(self, name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = function()
        self.seconds[name].append(time.perf_counter() - start)
        return found


def by_threshold(evidence: Evidence, counts: np.ndarray) -> list[np.ndarray]:
    """Confusion matrices of the maps at each threshold.

    Arguments:
        counts: (S, C + 1) pixels of the true classes.
    """
    found = [iou.threshold_assignment(evidence.maps, evidence.labels, level) for level in iou.THRESHOLDS]
    return [iou.superpixel_confusion(one, counts) for one in found]


def by_other_half(confusions: np.ndarray) -> float:
    """mIoU of thresholds (photos, thresholds, C + 1, C + 1), each half of the photos at the other half's best."""
    halves = confusions[::2].sum(axis=0), confusions[1::2].sum(axis=0)
    best = [int(np.argmax([iou.miou(one) for one in half])) for half in halves]
    return iou.miou(halves[0][best[1]] + halves[1][best[0]])


def labels_by_crf(job: Job, evidence: Evidence, photo: np.ndarray) -> np.ndarray:
    """The CRF's labels (H, W): background has `object_from` where the maps have their values."""
    background = np.full((1, evidence.maps.shape[1]), job.recipe.supervision.object_from)
    shares = np.concatenate([background, evidence.maps]) + 1e-3
    shares = torch.from_numpy((shares / shares.sum(axis=0))[:, evidence.regions.superpixels]).float()
    found = dense_crf(photo, shares, **crf_settings(job.recipe))
    return np.array([0, *(label + 1 for label in evidence.labels)], np.uint8)[found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--photos", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    job, costs, quality = open_run(str(args.run)), Costs(), defaultdict(list)
    classes, settings = len(job.classes) + 1, job.recipe.supervision
    for row in tqdm(rows(job, args.photos)):
        regions, truth = regions_of(row), truth_of(job, row) if row.mask_uri else None
        counts = None if truth is None else iou.superpixel_counts(regions.superpixels, truth, classes)
        evidence = evidence_of(job, row, regions, row.kept)
        for reading in READINGS.names:
            own = costs.timed(reading, lambda r=reading, e=evidence: replace(e, maps=READINGS.get(r)(e)))
            for name in settings.refiners:
                own = replace(own, maps=REFINERS.get(name)(own))
            if counts is not None:
                quality[reading].append(by_threshold(own, counts))
            if reading == settings.reading:
                chosen = own
        for maker in MASKS.names:
            mask = costs.timed(maker, lambda m=maker, e=chosen: MASKS.get(m)(e, settings))
            if counts is not None:
                quality[maker].append(iou.superpixel_confusion(mask, counts))
        photo = chosen.read_photo()
        drawn = costs.timed("CRF", lambda e=chosen, p=photo: labels_by_crf(job, e, p))
        if truth is not None:
            quality["CRF"].append(iou.confusion(drawn, truth, classes))
    for name, seconds in costs.seconds.items():
        if name not in quality:
            print(f"{name:<12} {1000 * np.median(seconds):8.2f} ms per photo")
            continue
        measured = np.array(quality[name])
        good = by_other_half(measured) if name in READINGS.names else iou.miou(measured.sum(axis=0))
        print(f"{name:<12} {1000 * np.median(seconds):8.2f} ms per photo  {good:5.1f} mIoU")


if __name__ == "__main__":
    main()
