"""Between two rounds of `train_segmenter`: what networks see in the training photos, as labels for the next round.

Only classes that the photo has can be seen (image-level labels forbid the rest), and the CRF draws them along edges.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from wsseg_ray.datasets.pixels import encode_mask
from wsseg_ray.recipe import CAM
from wsseg_ray.segmentation.crf import dense_crf
from wsseg_ray.segmentation.deeplab import upsample
from wsseg_ray.segmentation.objectives.cam import activation_probabilities
from wsseg_ray.stages import predict
from wsseg_ray.stages.feed import OWN_LABELS
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.resources import needs
from wsseg_ray.stages.rows import add_photo
from wsseg_ray.stages.shards import Row, map_shards

ABSENT = -1e4  # a logit of what cannot be: finite, because bilinear weights of 0 make NaN of infinity


def run(job: Job, names: list[str], round_: int) -> int:
    """Write `segmenters/labels-<round>/` with what networks see after the round before; returns the photos done now."""
    table = f"{OWN_LABELS}-{round_}"
    for shard in job.run.shards(table):
        if any(
            not set(names) <= set(row["networks"]) for row in job.run.read_good(table, shard, ["networks"]).values()
        ):
            job.run.delete(table)  # of other networks: the recipe was changed in between
            break
    shards = dict.fromkeys(job.run.shards("supervision"), needs(job.recipe, "predict").threads)
    actor = partial(predict.Predictor, names=names, round_=round_ - 1)
    return map_shards(
        job, "relabel", table, shards, predict.photo_rows, add_photo, actor, partial(_finish, names, round_), "predict"
    )


def _finish(names: list[str], round_: int, job: Job, row: Row) -> Row:
    """A palette PNG a network."""
    found = [
        own_labels(job, name, round_, row["photo"], logits, row["labels"] + 1)
        for name, logits in zip(names, row["logits"], strict=True)
    ]
    return {"networks": names, "labels": [encode_mask(labels) for labels in found]}


def own_labels(
    job: Job, name: str, round_: int, photo: np.ndarray, logits: torch.Tensor, labels: np.ndarray
) -> np.ndarray:
    """What a network sees in a photo (H, W, 3) that has the channels `labels`: (H, W) uint8, after the CRF if it is on.

    CAM's first labels are its activation maps after the CRF as it is by default, whatever the recipe says: so a CAM
    that is trained stays as it is when the recipe's CRF is changed.

    Arguments:
        logits: (C, h, w).
    """
    if name == CAM and round_ == 1:
        small = predict.bounded(photo)
        maps = upsample(logits[None], *small.shape[:2])[0]
        found = dense_crf(small, activation_probabilities(maps, labels.tolist()).numpy())
        return predict.enlarge(found, photo.shape[:2])
    absent = np.setdiff1d(np.arange(1, len(logits)), labels)
    return predict.segment(job.recipe, name, photo, logits.index_fill(0, torch.from_numpy(absent), ABSENT))[-1]
