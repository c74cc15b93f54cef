"""What the segmentation trainers are fed: crops of photos or stored features, mirrored at random, with their targets.

Crops are made in tasks, ahead of the trainer. Stored features are read by the trainer itself, whole photos, each shard
once per epoch. Targets are on the network's grid: an array of H x W x classes is never stored or sent.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.engine import training
from wsseg_ray.engine.stage import Job, Worker, photo_number
from wsseg_ray.hcp.dropout import mixed
from wsseg_ray.segmentation.grid import grid_size, is_centred, whole_crop
from wsseg_ray.segmentation.heads import HEADS
from wsseg_ray.segmentation.losses import IGNORE
from wsseg_ray.segmentation.networks import Network
from wsseg_ray.segmentation.targets import crop_and_mirror, hard_target, soft_target
from wsseg_ray.stages.rows import photo_of, truth_of
from wsseg_ray.stages.segmenters import network_named
from wsseg_ray.stages.stored import Kept, maps_of, segmenters_read
from wsseg_ray.tables import IMAGES, PROPOSALS, SUPERVISION, FeatureRow, Table, own_labels

KEPT_TARGETS = 2**29  # bytes, per worker


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


Sample = tuple[dict[str, torch.Tensor], np.ndarray, int]  # maps (C, h, w) by level, target (K, h, w), and number


class Batch(NamedTuple):
    """The photos of a step, on the trainer's device: their crops, or the stored features of whole photos."""

    photos: torch.Tensor | None  # (b, crop, crop, 3) uint8
    maps: list[dict[str, torch.Tensor]] | None  # (C, h, w) of each photo by level, half precision
    targets: torch.Tensor  # (b, K, h, w) float32, see `_target`
    numbers: list[int]  # of each crop, 0..2^62: equal crops, equal numbers


def target_kind(network: Network, round_: int) -> str:
    """What a network learns from: its `own` labels after the first round, else its target."""
    return "own" if round_ else network.target


def shows_photos_alone(worker: Worker) -> bool:
    """Whether a step is faster with a batch for each photo, see `training.step_by_photo`: stored features on a CPU."""
    return worker.world == 1 and worker.device.type == "cpu" and segmenters_read(worker.job.recipe) is not None


def stream(worker: Worker, steps: Iterator[SgdStep]) -> Iterator[tuple[SgdStep, list[Batch]]]:
    """Every step with its photos, on the worker's device, in order: as one batch, or as one for each photo."""
    if table := segmenters_read(worker.job.recipe):
        feed, alone = StoredFeed(worker.job, table, worker.device), shows_photos_alone(worker)
        yield from ((step, feed.alone(step) if alone else [feed.batch(step)]) for step in steps)
        return
    ahead: deque[SgdStep] = deque()

    def rows() -> Iterator[dict[str, Any]]:
        for step in steps:
            ahead.append(step)
            yield asdict(step)

    for arrays in worker.stream(rows(), partial(read_batches, worker.job)):
        yield ahead.popleft(), [Batch(arrays["photos"], None, arrays["targets"], arrays["numbers"].tolist())]


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
    return whole_crop(settings.backbone, settings.head, settings.crop)


def _cells(job: Job, pixels: int) -> int:
    return grid_size(job.recipe.segmentation.backbone, job.recipe.segmentation.head, pixels)


def _source(job: Job, step: SgdStep) -> tuple[str, str, int]:
    kind = target_kind(network_named(job.recipe, step.network), step.round)
    return kind, step.network if kind == "own" else "", step.round


def _read(job: Job, kind: str, network: str, round_: int, shard: str, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Photos of a shard, with what `_supervision` has of them."""
    rows = _supervision(job, kind, network, round_, shard)
    images = job.run.read_good(job.table(IMAGES), shard, ["uri", "digest"])
    for image_id in ids:
        rows[image_id]["photo"] = photo_of(job, images[image_id])
    return rows


def _supervision(job: Job, kind: str, network: str, round_: int, shard: str) -> dict[str, dict[str, Any]]:
    """The labels of a shard's photos that may train, an index map `over` each photo and what it points to."""
    run, taught = job.run, kind in ("maps", "mask")
    supervision = run.read_good(job.table(SUPERVISION), shard, [kind, f"{kind}_unrefined"] if taught else [])
    proposals = run.read_good(job.table(PROPOSALS), shard, ["superpixels"]) if taught else {}
    own_rows = run.read_good(job.table(own_labels(round_)), shard) if kind == "own" else {}
    images = run.read_good(job.table(IMAGES), shard)
    rows: dict[str, dict[str, Any]] = {}
    for image_id, given in supervision.items():  # a photo that failed there may have a mask that cannot be read
        image = images[image_id]
        rows[image_id] = {"labels": image.labels}
        if taught:
            rows[image_id] |= vars(given) | {"over": proposals[image_id].superpixels}
        elif kind == "own":
            own = own_rows.get(image_id)  # none where `relabel` failed: then no cell of the photo counts
            rows[image_id]["over"] = np.full((image.height, image.width), IGNORE, np.uint8)
            if own:
                rows[image_id]["over"] = np.asarray(Image.open(io.BytesIO(own.png[own.networks.index(network)])))
        elif kind == "truth" and image.mask_uri:
            rows[image_id]["over"] = truth_of(job, image)
        else:
            rows[image_id]["over"] = np.zeros((image.height, image.width), np.uint8)
    return rows


def _sample(job: Job, step: SgdStep, row: dict[str, Any], image_id: str) -> tuple[np.ndarray, np.ndarray, int]:
    """A crop (crop, crop, 3), its target (K, h, w) and its number."""
    rng = np.random.default_rng([job.recipe.seed, photo_number(image_id), step.epoch])
    mean = np.rint(255 * np.array(BACKBONES.get(job.recipe.segmentation.backbone).mean)).astype(np.uint8)
    photo, (over,), valid = crop_and_mirror(rng, row["photo"], [row["over"]], _crop(job), mean)
    number = int.from_bytes(blake2b(photo.tobytes(), digest_size=8).digest(), "big") >> 2
    cells = _cells(job, _crop(job))
    return photo, _target(job, step, row, over, valid, (cells, cells)), number


def _target(
    job: Job, step: SgdStep, row: dict[str, Any], over: np.ndarray, valid: np.ndarray, cells: tuple[int, int]
) -> np.ndarray:
    """What the network is shown, (K, h, w): a distribution, a class (K = 1), or which classes the photo has.

    The last is 1 for the photo's channels and the background in the cells that lie in the photo.

    Arguments:
        cells: h and w.
    """
    classes = len(job.classes)
    network, centred = network_named(job.recipe, step.network), is_centred(job.recipe.segmentation.backbone)
    kind = target_kind(network, step.round)
    suffix = network.suffix
    if kind == "maps":
        return soft_target(over, valid, row["maps" + suffix], row["labels"], classes, *cells, centred)
    if kind == "labels":
        target = np.zeros((classes + 1, *cells), np.float32)
        height, width = cells if valid.all() else (_cells(job, int(valid.any(axis=axis).sum())) for axis in (1, 0))
        target[[0, *(row["labels"] + 1)], :height, :width] = 1
        return target
    mask = row["mask" + suffix] if kind == "mask" else np.arange(256)
    return hard_target(mask, over, valid, *cells, centred)[None]


class StoredFeed:
    """Batches of whole photos from stored features, each photo mirrored every other time.

    A worker reads each shard once per epoch, and computes each target once.
    """

    def __init__(self, job: Job, table: Table[FeatureRow], device: torch.device) -> None:
        self._job, self._table, self._device = job, table, device
        self._features = lru_cache(maxsize=2 * training.HANDS)(self._load)
        self._supervision = lru_cache(maxsize=2 * training.HANDS)(partial(_supervision, job))
        self._targets = Kept[np.ndarray](KEPT_TARGETS)

    def batch(self, step: SgdStep) -> Batch:
        """The photos of a step."""
        samples = self._samples(step)
        return self._shown(samples) if samples else Batch(None, [], torch.zeros((0, 1, 1, 1)), [])

    def alone(self, step: SgdStep) -> list[Batch]:
        """Each photo of a step."""
        return [self._shown([sample]) for sample in self._samples(step)]

    def _samples(self, step: SgdStep) -> list[Sample]:
        return [self._sample(step, *member) for member in zip(step.shards, step.photos, strict=True)]

    def _shown(self, samples: Sequence[Sample]) -> Batch:
        maps, targets, numbers = zip(*samples, strict=True)
        # What lies outside a photo must not count: class 255, or no probability of any class.
        outside = IGNORE if targets[0].shape[0] == 1 else 0
        shown = together([torch.from_numpy(target) for target in targets], outside)
        return Batch(None, list(maps), shown.to(self._device), list(numbers))

    def _sample(self, step: SgdStep, shard: str, image_id: str) -> Sample:
        """A photo or its mirror."""
        row = self._features(shard)[image_id]
        plain = maps_of(row)
        assert plain is not None  # this view is always stored
        grid = plain[HEADS.get(self._job.recipe.segmentation.head).grid].shape[1:]
        source = _source(self._job, step)
        name = f"{source} {network_named(self._job.recipe, step.network).suffix} {image_id}"
        target = self._targets.get(name, partial(self._target, step, source, shard, image_id, (grid[0], grid[1])))
        if not np.random.default_rng([self._job.recipe.seed, photo_number(image_id), step.epoch]).integers(2):
            return plain, target, mixed(photo_number(image_id), 0)
        mirrored = maps_of(row, (1.0, True)) or {level: maps.flip(2) for level, maps in plain.items()}
        return mirrored, np.ascontiguousarray(target[:, :, ::-1]), mixed(photo_number(image_id), 1)

    def _target(
        self, step: SgdStep, source: tuple[str, str, int], shard: str, image_id: str, cells: tuple[int, int]
    ) -> np.ndarray:
        row = self._supervision(*source, shard)[image_id]
        over = row["over"]
        return _target(self._job, step, row, over, np.ones(over.shape, bool), cells).astype(np.float32)

    def _load(self, shard: str) -> dict[str, FeatureRow]:
        return self._job.run.read_good(self._job.table(self._table), shard)


def together(maps: Sequence[torch.Tensor], outside: float = 0) -> torch.Tensor:
    """Maps (C, h, w) of unlike sizes as one tensor, filled up at the bottom and on the right."""
    height, width = (max(own.shape[axis] for own in maps) for axis in (1, 2))
    filled = [functional.pad(own, (0, width - own.shape[2], 0, height - own.shape[1]), value=outside) for own in maps]
    return torch.stack(filled)
