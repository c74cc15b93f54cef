"""What the segmentation trainers are fed: photos read, cropped, mirrored and given their targets.

Targets leave a task on the network's grid: an array of H x W x classes is never stored or sent.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.datasets.pixels import read_photo
from wsseg_ray.engine.stage import Job, Worker, photo_number
from wsseg_ray.segmentation.grid import grid_size, whole_cells
from wsseg_ray.segmentation.losses import IGNORE
from wsseg_ray.segmentation.networks import Network
from wsseg_ray.segmentation.targets import crop_and_mirror, hard_target, soft_target
from wsseg_ray.stages.rows import truth_of
from wsseg_ray.stages.segmenters import network_named
from wsseg_ray.storage import read_bytes
from wsseg_ray.tables import IMAGES, PROPOSALS, SUPERVISION, own_labels


@dataclass(frozen=True)
class SgdStep:
    """One step of SGD, as one worker sees it."""

    network: str
    round: int  # 0: from the supervision; later: from the network's own labels
    epoch: int
    index: int  # in the epoch
    shards: tuple[str, ...]  # of each of this worker's photos
    photos: tuple[str, ...]  # their image_ids
    size: int  # photos of all workers
    ends_epoch: bool
    seen: int  # photos before this step, over all epochs and networks


class Batch(NamedTuple):
    """The photos of a step, on the trainer's device."""

    photos: torch.Tensor  # (b, crop, crop, 3) uint8
    targets: torch.Tensor  # (b, K, h, w) float32, see `_target`
    numbers: list[int]  # of each crop, 0..2^62: equal crops, equal numbers


def target_kind(network: Network, round_: int) -> str:
    """What a network learns from: its `own` labels after the first round, else its target."""
    return "own" if round_ else network.target


def stream(worker: Worker, steps: Iterator[SgdStep]) -> Iterator[tuple[SgdStep, Batch]]:
    """Every step with its photos, on the worker's device, in order."""
    ahead: deque[SgdStep] = deque()

    def rows() -> Iterator[dict[str, Any]]:
        for step in steps:
            ahead.append(step)
            yield asdict(step)

    for arrays in worker.stream(rows(), partial(read_batches, worker.job)):
        yield ahead.popleft(), Batch(arrays["photos"], arrays["targets"], arrays["numbers"].tolist())


def read_batches(job: Job, columns: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """The `photos`, `targets` and `numbers` of some steps, each with a first axis of one, as `Batch` has them.

    Each shard is read once for each kind of target.

    Arguments:
        columns: the steps' fields by name.
    """
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    steps = [SgdStep(**row) for row in rows]
    wanted: dict[tuple[str, str, int, str], set[str]] = {}
    for step in steps:
        for shard, image_id in zip(step.shards, step.photos, strict=True):
            wanted.setdefault((*_source(job, step), shard), set()).add(image_id)
    read = {key: _read(job, *key, ids) for key, ids in wanted.items()}
    crop = _crop(job)
    for step in steps:
        source, members = _source(job, step), zip(step.shards, step.photos, strict=True)
        samples = [_sample(job, step, read[(*source, shard)][image_id], image_id) for shard, image_id in members]
        photos, targets, numbers = zip(*samples, strict=True) if samples else ([], [], [])
        yield {
            "photos": _one([*photos], (crop, crop, 3), np.uint8),
            "targets": _one([*targets], (1, 1, 1), np.float32),
            "numbers": _one([*numbers], (), np.int64),
        }


def _one(arrays: list[Any], shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A row's array, of as many arrays as the step has photos."""
    return (np.stack(arrays) if arrays else np.empty((0, *shape))).astype(dtype)[None]


def _crop(job: Job) -> int:
    settings = job.recipe.segmentation
    return whole_cells(settings.backbone, settings.head, settings.crop)


def _cells(job: Job, pixels: int) -> int:
    return grid_size(job.recipe.segmentation.backbone, job.recipe.segmentation.head, pixels)


def _source(job: Job, step: SgdStep) -> tuple[str, str, int]:
    kind = target_kind(network_named(job.recipe, step.network), step.round)
    return kind, step.network if kind == "own" else "", step.round


def _read(job: Job, kind: str, network: str, round_: int, shard: str, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Photos of a shard, their labels, an index map `over` the photo and what it points to."""
    run = job.run
    images = run.read_good(job.table(IMAGES), shard)
    proposals = supervision = own_rows = {}
    if kind in ("maps", "mask"):
        proposals = run.read_good(job.table(PROPOSALS), shard, ["superpixels"])
        supervision = run.read_good(job.table(SUPERVISION), shard, [kind, f"{kind}_unrefined"])
    if kind == "own":
        own_rows = run.read_good(job.table(own_labels(round_)), shard)
    rows = {}
    for image_id in ids:
        image = images[image_id]
        row = {"photo": read_photo(read_bytes(image.uri), job.recipe.dataset.max_side), "labels": image.labels}
        if supervision:
            row |= vars(supervision[image_id]) | {"over": proposals[image_id].superpixels}
        elif kind == "own":
            own = own_rows.get(image_id)  # none where `relabel` failed: then no cell of the photo counts
            row["over"] = np.full(row["photo"].shape[:2], IGNORE, np.uint8)
            if own:
                row["over"] = np.asarray(Image.open(io.BytesIO(own.png[own.networks.index(network)])))
        elif kind == "truth":
            row["over"] = truth_of(job, image)
        rows[image_id] = row
    return rows


def _sample(job: Job, step: SgdStep, row: dict[str, Any], image_id: str) -> tuple[np.ndarray, np.ndarray, int]:
    """A crop (crop, crop, 3), its target (K, h, w) and its number."""
    rng = np.random.default_rng([job.recipe.seed, photo_number(image_id), step.epoch])
    over = row.get("over", np.zeros(row["photo"].shape[:2], np.uint8))
    mean = np.rint(255 * np.array(BACKBONES.get(job.recipe.segmentation.backbone).mean)).astype(np.uint8)
    photo, (over,), valid = crop_and_mirror(rng, row["photo"], [over], _crop(job), mean)
    number = int.from_bytes(blake2b(photo.tobytes(), digest_size=8).digest(), "big") >> 2
    return photo, _target(job, step, row, over, valid), number


def _target(job: Job, step: SgdStep, row: dict[str, Any], over: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """What the network is shown, (K, h, w): a distribution, a class (K = 1), or which classes the photo has.

    The last is 1 for the photo's channels and the background in the cells that lie in the photo.
    """
    classes, cells = len(job.classes), _cells(job, job.recipe.segmentation.crop)
    network = network_named(job.recipe, step.network)
    kind = target_kind(network, step.round)
    suffix = network.suffix
    if kind == "maps":
        return soft_target(over, valid, row["maps" + suffix], row["labels"], classes, cells, cells)
    if kind == "labels":
        target = np.zeros((classes + 1, cells, cells), np.float32)
        height, width = (_cells(job, int(valid.any(axis=axis).sum())) for axis in (1, 0))
        target[[0, *(row["labels"] + 1)], :height, :width] = 1
        return target
    mask = row["mask" + suffix] if kind == "mask" else np.arange(256)
    return hard_target(mask, over, valid, cells, cells)[None]
