"""What the segmentation trainers are fed: photos read, cropped, mirrored and given their targets in Ray Data tasks.

A row of the Dataset is a training step: the photos that one worker sees in it. The rows come in the order of training,
whatever task is done first, so results do not depend on the number of tasks, workers or machines. Targets leave a task
on the network's grid: an array of H x W x classes is never stored or sent.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import ray.data
import torch
from PIL import Image

from wsseg_ray.datasets.pixels import read_photo
from wsseg_ray.recipe import CEILING, START, UNREFINED
from wsseg_ray.segmentation.losses import IGNORE
from wsseg_ray.segmentation.models import grid_size, whole_cells
from wsseg_ray.segmentation.objectives import OBJECTIVES
from wsseg_ray.segmentation.targets import crop_and_mirror, hard_target, soft_target
from wsseg_ray.stages.job import Job, photo_number
from wsseg_ray.stages.rows import superpixels_of, truth_of
from wsseg_ray.tables import read_bytes

SPAN = 8192  # steps of one Dataset: bounds what a worker plans ahead
STEPS_A_TASK = 16  # they share the shards that a task reads
PREFETCH = 4  # steps that wait at the trainer's door
OWN_LABELS = "segmenters/labels"  # table of what networks see in the training photos, one a round: `-1`, `-2`, ...


class Step(NamedTuple):
    """One step of SGD, as one worker sees it."""

    network: str
    round: int  # 0: from the supervision; later: from the network's own labels
    epoch: int
    index: int  # in the epoch
    photos: list[tuple[str, str]]  # shard and image_id of this worker's photos
    size: int  # photos of all workers
    ends_epoch: bool
    seen: int  # photos before this step, over all epochs and networks


class Batch(NamedTuple):
    """The photos of a step, on the trainer's device."""

    photos: torch.Tensor  # (b, crop, crop, 3) uint8
    targets: torch.Tensor  # (b, K, h, w) float32, see `_target`
    numbers: list[int]  # of each crop, 0..2^62: equal crops, equal numbers


def target_kind(network: str, round_: int) -> str:
    """What a network learns from: `own` labels, `truth`, the photo's `labels`, a rough `mask` or `maps`."""
    if round_ > 0:
        return "own"
    if network == CEILING:
        return "truth"
    if network in OBJECTIVES or network == START:
        return "labels"
    return "maps" if network.removesuffix(UNREFINED).endswith("_A") else "mask"


def stream(job: Job, steps: Iterator[Step], device: torch.device) -> Iterator[tuple[Step, Batch, float]]:
    """Every step with its photos, and the seconds that the trainer waited for them.

    Arguments:
        steps: this worker's, in the order of training.
        device: where batches are put while the trainer works on the one before.
    """
    while span := list(islice(steps, SPAN)):
        rows = [{"step": pickle.dumps(step)} for step in span]
        dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // STEPS_A_TASK))
        dataset.set_name("train_segmenter")
        dataset.context.execution_options.preserve_order = True
        batches = iter(
            dataset.map_batches(partial(read_batches, job), batch_size=STEPS_A_TASK).iter_torch_batches(
                batch_size=1, prefetch_batches=PREFETCH, device=device, pin_memory=device.type == "cuda"
            )
        )
        for step in span:
            asked = time.monotonic()
            row = next(batches)
            batch = Batch(row["photos"][0], row["targets"][0], row["numbers"][0].tolist())
            yield step, batch, time.monotonic() - asked


def read_batches(job: Job, rows: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """The `photos`, `targets` and `numbers` of some steps, each with a first axis of one, as `Batch` has them.

    Each shard is read once for each kind of target.

    Arguments:
        rows: `step`: pickled `Step`s.
    """
    steps: list[Step] = [pickle.loads(row) for row in rows["step"]]
    wanted: dict[tuple[str, str, int, str], set[str]] = {}
    for step in steps:
        for shard, image_id in step.photos:
            wanted.setdefault((*_source(step), shard), set()).add(image_id)
    read = {key: _read(job, *key, ids) for key, ids in wanted.items()}
    crop = whole_cells(job.recipe.segmentation.model, job.recipe.segmentation.crop)
    for step in steps:
        samples = [_sample(job, step, read[(*_source(step), shard)][i], i) for shard, i in step.photos]
        photos, targets, numbers = zip(*samples, strict=True) if samples else ([], [], [])
        yield {
            "photos": _one([*photos], (crop, crop, 3), np.uint8),
            "targets": _one([*targets], (1, 1, 1), np.float32),
            "numbers": _one([*numbers], (), np.int64),
        }


def _one(arrays: list[np.ndarray], shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A row's array, of as many arrays as the step has photos."""
    return (np.stack(arrays) if arrays else np.empty((0, *shape))).astype(dtype)[None]


def _source(step: Step) -> tuple[str, str, int]:
    kind = target_kind(step.network, step.round)
    return kind, step.network if kind == "own" else "", step.round


def _read(job: Job, kind: str, network: str, round_: int, shard: str, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Photos of a shard, their labels, an index map `over` the photo and what it points to."""
    run, dataset = job.run, job.recipe.dataset
    images = run.read_good("images", shard)
    tables: dict[str, dict[str, Any]] = {}
    if kind in ("maps", "mask"):
        tables["proposals"] = run.read_good("proposals", shard, ["height", "width", "superpixels"])
        tables["supervision"] = run.read_good("supervision", shard, [kind, kind + UNREFINED])
    if kind == "own":
        tables["own"] = run.read_good(f"{OWN_LABELS}-{round_}", shard)
    rows = {}
    for image_id in ids:
        image = images[image_id]
        row = {"photo": read_photo(read_bytes(image["uri"]), dataset.max_side), "labels": image["labels"]}
        if "supervision" in tables:
            row |= tables["supervision"][image_id] | {"over": superpixels_of(tables["proposals"][image_id])}
        elif kind == "own":
            own = tables["own"].get(image_id)  # none where `relabel` failed: then no cell of the photo counts
            row["over"] = np.full(row["photo"].shape[:2], IGNORE, np.uint8)
            if own:
                row["over"] = np.asarray(Image.open(io.BytesIO(own["labels"][own["networks"].index(network)])))
        elif kind == "truth":
            row["over"] = truth_of(job, image)
        rows[image_id] = row
    return rows


def _sample(job: Job, step: Step, row: dict[str, Any], image_id: str) -> tuple[np.ndarray, np.ndarray, int]:
    """A crop (crop, crop, 3), its target (K, h, w) and its number."""
    settings = job.recipe.segmentation
    rng = np.random.default_rng([job.recipe.seed, photo_number(image_id), step.epoch])
    over = row.get("over", np.zeros(row["photo"].shape[:2], np.uint8))
    photo, (over,), valid = crop_and_mirror(rng, row["photo"], [over], whole_cells(settings.model, settings.crop))
    number = int.from_bytes(blake2b(photo.tobytes(), digest_size=8).digest(), "big") >> 2
    return photo, _target(job, step, row, over, valid), number


def _target(job: Job, step: Step, row: dict[str, Any], over: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """What the network is shown, (K, h, w): a distribution, a class (K = 1), or which classes the photo has.

    The last is 1 for the photo's channels and the background in the cells that lie in the photo.
    """
    settings, classes = job.recipe.segmentation, len(job.classes)
    cells = grid_size(settings.model, settings.crop)
    kind = target_kind(step.network, step.round)
    suffix = UNREFINED if step.network.endswith(UNREFINED) else ""
    if kind == "maps":
        maps = row["maps" + suffix].reshape(len(row["labels"]), -1)
        return soft_target(over, valid, maps, row["labels"], classes, cells, cells)
    if kind == "labels":
        target = np.zeros((classes + 1, cells, cells), np.float32)
        height, width = (grid_size(settings.model, int(valid.any(axis=axis).sum())) for axis in (1, 0))
        target[[0, *(row["labels"] + 1)], :height, :width] = 1
        return target
    mask = np.frombuffer(row["mask" + suffix], np.uint8) if kind == "mask" else np.arange(256)
    return hard_target(mask, over, valid, cells, cells)[None]
