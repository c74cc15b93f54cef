"""Between two rounds of `train_segmenter`: what networks see in the training photos, as labels for the next round.

Only classes that the photo has can be seen (image-level labels forbid the rest), and the CRF draws them along edges.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from wsseg_ray.datasets.pixels import encode_mask
from wsseg_ray.recipe import CAM
from wsseg_ray.segmentation.crf import dense_crf
from wsseg_ray.segmentation.inference import View, at_pixels
from wsseg_ray.segmentation.objectives.cam import activation_probabilities
from wsseg_ray.stages import predict
from wsseg_ray.stages.feed import OWN_LABELS
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.labels import bounded, enlarge, segment
from wsseg_ray.stages.resources import needs
from wsseg_ray.stages.rows import add_photo
from wsseg_ray.stages.shards import Row, map_shards


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
    """A palette PNG for each network."""
    found = own_labels(job, names, round_, row["photo"], row["views"], row["labels"] + 1)
    return {"networks": names, "labels": [encode_mask(labels) for labels in found]}


def own_labels(
    job: Job, names: list[str], round_: int, photo: np.ndarray, views: list[list[View]], present: np.ndarray
) -> list[np.ndarray]:
    """What each network sees in a photo (H, W, 3) that has the channels `present`, after the CRF if it is on.

    The first labels of CAM are its activation maps after the CRF as it is by default, whatever the recipe says: so a
    CAM that is trained stays as it is when the CRF of the recipe is changed.

    Arguments:
        views: of each network, from `photo_views`.
    Returns (H, W) uint8 for each network.
    """
    views_of = dict(zip(names, views, strict=True))
    found = {}
    if CAM in names and round_ == 1:
        small = bounded(photo)
        maps = at_pixels(views_of.pop(CAM), *small.shape[:2])
        found[CAM] = enlarge(dense_crf(small, activation_probabilities(maps, present.tolist())), photo.shape[:2])
    if views_of:  # together: they share the work of the CRF on the photo
        labels = segment(job.recipe, list(views_of), photo, list(views_of.values()), present)
        found |= zip(views_of, (own[-1] for own in labels), strict=True)
    return [found[name] for name in names]
