"""Stage `relabel`: before each round of training but the first, what networks see in the training photos, as labels.

Only classes that the photo has can be seen (image-level labels forbid the rest), and the CRF draws them along edges.
Where a photo has a true mask, the labels are compared with it; the true masks serve for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from wsseg_ray.datasets.pixels import encode_mask
from wsseg_ray.engine.stage import Job, Runner, Stage, Step, Work
from wsseg_ray.evaluation import iou
from wsseg_ray.segmentation.crf import dense_crf
from wsseg_ray.segmentation.inference import View, at_pixels
from wsseg_ray.segmentation.networks import Network
from wsseg_ray.segmentation.objectives.cam import activation_probabilities
from wsseg_ray.stages.labels import bounded, enlarge, segment
from wsseg_ray.stages.predictor import Predictor, ViewsRow, seen_rows, trained_networks, unpacked
from wsseg_ray.stages.rows import SeenRow, add_photo, truth_of
from wsseg_ray.stages.segmenters import folder, is_trained, of_round
from wsseg_ray.stages.stored import STORED
from wsseg_ray.tables import SUPERVISION, OwnLabelsRow, own_labels


def _run(round_: int, job: Job, runner: Runner) -> int:
    """Write `labels-<round>/` for the networks that the round has still to train; returns the photos done now."""
    missing = [network for network in of_round(job.recipe, round_) if not is_trained(job, network, round_)]
    if not missing:
        return 0
    table, names = own_labels(round_), {network.name for network in missing}
    for shard in job.run.shards(table.folder):
        if any(not names <= set(row.networks) for row in job.run.read_good(table, shard, ["networks"]).values()):
            job.run.delete(table.folder)  # of other networks: the recipe was changed in between
            break
    return runner.map_shards(job, stage(round_), _of_networks(missing, round_), job.shards(SUPERVISION))


def _of_networks(networks: Sequence[Network], round_: int) -> Work[OwnLabelsRow]:
    steps = (
        Step(add_photo, SeenRow),
        Step(partial(Predictor, partial(trained_networks, networks, round_ - 1), {}), ViewsRow, actor=True),
        Step(partial(_finish, networks, round_), OwnLabelsRow),
    )
    return Work(own_labels(round_), seen_rows, steps)


def _finish(networks: Sequence[Network], round_: int, job: Job, row: ViewsRow) -> OwnLabelsRow:
    """A palette PNG for each network."""
    found = labels_of(job, networks, round_, row.photo, unpacked(row), row.labels + 1)
    labels = OwnLabelsRow(networks=[network.name for network in networks], png=[encode_mask(own) for own in found])
    if row.mask_uri:
        truth = truth_of(job, row)
        labels.confusion = np.array([iou.confusion(own, truth, len(job.classes) + 1).ravel() for own in found])
    return labels


def labels_of(
    job: Job,
    networks: Sequence[Network],
    round_: int,
    photo: np.ndarray,
    views: Sequence[Sequence[View]],
    present: np.ndarray,
) -> list[np.ndarray]:
    """What each network sees in a photo (H, W, 3) that has the channels `present`, after the CRF if it is on.

    The first labels of CAM are its activation maps after the CRF as it is by default, whatever the recipe says: so a
    CAM that is trained stays as it is when the CRF of the recipe is changed.

    Arguments:
        views: of each network, from `photo_views`.
    Returns (H, W) uint8 for each network.
    """
    found, others = {}, []
    for network, own in zip(networks, views, strict=True):
        if network.activation_maps and round_ == 1:
            small = bounded(photo)
            probabilities = activation_probabilities(at_pixels(own, *small.shape[:2]), present.tolist())
            found[network.name] = enlarge(dense_crf(small, probabilities), photo.shape[:2])
        else:
            others.append((network, own))
    if others:  # together: they share the work of the CRF on the photo
        labels = segment(job.recipe, [n for n, _ in others], photo, [own for _, own in others], present)
        found |= {network.name: own[-1] for (network, _), own in zip(others, labels, strict=True)}
    return [found[network.name] for network in networks]


def _metrics(round_: int, job: Job) -> dict[str, Any]:
    """mIoU in percent of each network's own labels with the true masks, where photos have any."""
    side, total = len(job.classes) + 1, dict[str, np.ndarray]()
    for row in job.run.rows(own_labels(round_), ["error", "networks", "confusion"]):
        for name, confusion in zip(row.networks, row.confusion, strict=False):
            total[name] = total.get(name, 0) + confusion.reshape(side, side)
    return {"own_labels": {f"round {round_}": {name: iou.miou(every) for name, every in total.items()}}}


@cache
def stage(round_: int) -> Stage:
    """The stage of a round, counted from 1."""
    return Stage(
        name=f"relabel-{round_}",
        reads=("images", "supervision", folder(round_ - 1), *STORED),
        writes=own_labels(round_).folder,
        run=partial(_run, round_),
        # The labels of a training's own round follow the CRF; CAM's first ones do not.
        settings=lambda recipe: ["crf"] if round_ == 1 and recipe.segmentation.rounds else [],
        table=own_labels(round_),
        work=lambda job: _of_networks(of_round(job.recipe, round_), round_),
        workers=lambda recipe: "actors",
        metrics=partial(_metrics, round_),
        again=stage,
        first_round=1,
    )


STAGE = stage(1)
