"""Weights of classes in the loss of masks: how often each class is among the pixels that networks learn from."""

from __future__ import annotations

import numpy as np
import torch

from wsseg_ray.engine.stage import Job, Runner
from wsseg_ray.segmentation.losses import IGNORE, class_weights
from wsseg_ray.stages.segmenters import folder
from wsseg_ray.tables import PROPOSALS, SUPERVISION

FILE = "pixels.json"


def count(job: Job, runner: Runner) -> None:
    """Keep the pixels of each class in the rough masks, unless they are kept; nothing where classes weigh the same."""
    if not job.recipe.segmentation.balance or job.run.exists(folder(0), FILE):
        return
    total = np.zeros(len(job.classes) + 1, np.int64)
    for part in runner.map_reduce(job, "count_pixels", _pixels, job.shards(SUPERVISION)):
        total += part["pixels"]
    job.run.write_json(total.tolist(), folder(0), FILE)


def weights(job: Job) -> torch.Tensor | None:
    """The weight of each class, background first; None where all weigh the same."""
    if not job.recipe.segmentation.balance:
        return None
    return class_weights(job.run.read_json(folder(0), FILE), job.recipe.segmentation.balance)


def _pixels(job: Job, shard: str) -> dict[str, np.ndarray]:
    """Pixels of each class, (C + 1,), in the masks of a shard."""
    masks = job.run.read_good(job.table(SUPERVISION), shard, ["mask"])
    regions = job.run.read_good(job.table(PROPOSALS), shard, ["height", "width", "superpixels"])
    found = np.zeros(256, np.int64)
    for image_id, row in masks.items():
        found += np.bincount(row.mask[regions[image_id].superpixels].ravel(), minlength=256)
    found[IGNORE] = 0
    return {"pixels": found[: len(job.classes) + 1]}
