"""What both trainings share: the order of photos, batches, gradients, checkpoints, progress. Imports no Ray.

The shards are dealt out over the workers, so a batch has photos of each worker's shards. The gradient is that of the
mean over the whole batch, so the batch, the learning rate and the loss are the same for any number of workers. A
checkpoint per epoch is kept in the run.
A worker group that starts again, after a fault or in a new run, goes on from it.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wsseg_ray.backbones.precision import mixed_precision
from wsseg_ray.engine.checkpoints import loaded
from wsseg_ray.engine.resources import HANDS
from wsseg_ray.engine.stage import Job, Worker
from wsseg_ray.tables import IMAGES, Table


@dataclass(frozen=True)
class Index:
    """The photos that a training may learn from, shard by shard, in some 30 bytes per photo.

    Arguments:
        shards: names.
        starts: (len(shards) + 1,) where the photos of each shard begin among all photos.
        names: (n,) the image_ids.
        labels: (n,) how many classes each photo has.
        has_mask: (n,) bool.
    """

    shards: list[str]
    starts: np.ndarray
    names: pa.Array
    labels: np.ndarray
    has_mask: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def photo(self, place: int) -> tuple[str, str]:
        """The shard and the image_id of a photo."""
        shard = int(np.searchsorted(self.starts, place, "right")) - 1
        return self.shards[shard], self.names[place].as_py()

    def only(self, kept: np.ndarray) -> Index:
        """The photos where `kept`, (n,) bool, is true, and the shards that have any."""
        before = np.concatenate([[0], np.cumsum(kept)])[self.starts]
        some = np.diff(before) > 0
        shards = [shard for shard, has_any in zip(self.shards, some, strict=True) if has_any]
        starts = np.concatenate([[0], before[1:][some]])
        return Index(shards, starts, self.names.filter(pa.array(kept)), self.labels[kept], self.has_mask[kept])


@dataclass(frozen=True)
class Order:
    """All photos of an index in the order of an epoch: what `places` says, and the hand of each."""

    index: Index
    places: np.ndarray
    hands: np.ndarray

    def __len__(self) -> int:
        return len(self.places)


def epoch_order(photos: Index, rng: np.random.Generator) -> Order:
    """All photos once, shuffled.

    Shards are dealt to HANDS hands, the same in every epoch. Each hand goes through its shards in random order, and
    through the photos of each in random order, and hands take turns, so that all of them end together. So HANDS shards
    are open at a time. A worker has some of the hands for the whole training (`batches`): however many workers there
    are, each shard is read, and each photo decoded and pooled, by one of them.
    """
    dealt = np.random.default_rng(0).permutation(len(photos.shards)) % HANDS
    every = []
    for hand in range(HANDS):
        own = [np.empty(0, np.int64)]
        for shard in rng.permutation(np.flatnonzero(dealt == hand)):
            begin, end = photos.starts[shard : shard + 2]
            own.append(begin + rng.permutation(end - begin))
        every.append(np.concatenate(own))
    places, lengths = np.concatenate(every), [len(own) for own in every]
    hands = np.repeat(np.arange(HANDS, dtype=np.uint8), lengths)
    turns = np.concatenate([(np.arange(length) + hand / HANDS) / max(1, length) for hand, length in enumerate(lengths)])
    order = np.lexsort([hands, turns])
    return Order(photos, places[order], hands[order])


def batches(worker: Worker, order: Order, size: int) -> Iterator[tuple[list[tuple[str, str]], int]]:
    """This worker's part of every batch, as (shard, image_id), and the size of the whole batch."""
    mine = order.hands % worker.world == worker.rank
    for start in range(0, len(order), size):
        batch = slice(start, start + size)
        photos = [order.index.photo(place) for place in order.places[batch][mine[batch]]]
        yield photos, min(size, len(order) - start)


def shared(worker: Worker, objective: nn.Module) -> nn.Module:
    """A module that computes a loss, set up to be trained by all workers together: DistributedDataParallel.

    BatchNorm's statistics are each worker's own, as they are of the photos that it sees.
    """
    if worker.world == 1:
        return objective
    return DistributedDataParallel(objective, broadcast_buffers=False)


def step(worker: Worker, objective: nn.Module, batch: Any, weight: float, optimizer: torch.optim.Optimizer) -> float:
    """One step of SGD on the mean loss over all workers' photos or cells; returns that mean.

    Arguments:
        objective: from `shared`: `objective(batch)` is the mean loss over this worker's photos or cells. For a worker
            without any, `batch` is None and the answer is 0.
        weight: how many photos or cells this worker has. So the mean is that over the whole batch, however it is dealt
            out.
    Raises FloatingPointError, before the weights are changed, where the mean is not finite.
    """
    optimizer.zero_grad(set_to_none=False)
    with mixed_precision(worker.device):
        loss = objective(batch)
    if worker.world == 1:
        loss = loss * min(weight, 1)
        loss.backward()
        return _update(optimizer, loss.detach())
    sums = torch.stack([loss.detach().to(worker.device) * weight, torch.tensor(float(weight), device=worker.device)])
    reduced = torch.distributed.all_reduce(sums, async_op=True)  # meanwhile, gradients are computed and reduced
    (loss * weight).backward()
    reduced.wait()
    total_loss, total_weight = sums[0], sums[1].clamp(min=1)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # DistributedDataParallel took the mean over the workers, but the mean over all photos or cells is wanted.
            parameter.grad.mul_(worker.world / total_weight)
    return _update(optimizer, total_loss / total_weight)


def step_by_photo(
    objective: nn.Module,
    photos: Sequence[tuple[Any, float]],
    optimizer: torch.optim.Optimizer,
    pool: ThreadPoolExecutor,
) -> float:
    """The step of one worker on a CPU, with each photo alone on one of its threads: see `step`.

    Photos of unlike sizes make no batch, and two threads of torch gain nothing on one photo. So this is faster where
    sizes are mixed, and as fast where they are not (`benchmarks/head_step.py`). The sums go over the photos in their
    order, so they are the same for any number of threads.

    Arguments:
        photos: a batch of one photo, as the objective takes it, and its weight.
        pool: from `one_thread_each`, for all steps of a training.
    """
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    total_weight = max(sum(weight for _, weight in photos), 1)

    def descend(photo: tuple[Any, float]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        batch, weight = photo
        loss = objective(batch) * (weight / total_weight)
        return loss.detach(), torch.autograd.grad(loss, parameters, materialize_grads=True)

    total, sums = torch.zeros(()), [torch.zeros_like(parameter) for parameter in parameters]
    for loss, gradients in pool.map(descend, photos):
        total += loss
        for own, gradient in zip(sums, gradients, strict=True):
            own += gradient
    for parameter, own in zip(parameters, sums, strict=True):
        parameter.grad = own
    return _update(optimizer, total)


def _update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    value = float(loss)  # here a GPU is waited for, once per step
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}: training diverged; a lower learning_rate may help")
    optimizer.step()
    return value


def nothing(module: nn.Module) -> torch.Tensor:
    """The loss of a worker without photos: 0, with a gradient of 0 for all that is trained."""
    return sum((p.sum() * 0 for p in module.parameters() if p.requires_grad), torch.zeros(()))


def learned(network: Any) -> dict[str, torch.Tensor]:
    """The state of a network without that of a frozen backbone, which is made anew: for checkpoints."""
    state = network.state_dict()
    if any(parameter.requires_grad for parameter in network.backbone.parameters()):
        return state
    return {key: tensor for key, tensor in state.items() if not key.startswith("backbone.")}


def take(network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Give a network the state that `learned` kept. Raises RuntimeError where it is that of another network."""
    network.load_state_dict({**network.state_dict(), **state})


def save(worker: Worker, state: dict[str, Any], *place: str) -> None:
    """Keep tensors and plain data in the run. Worker 0 alone writes."""
    if worker.rank == 0:
        worker.job.run.write_bytes(_as_bytes(state), *place)


def resumed(worker: Worker, *place: str) -> dict[str, Any] | None:
    """What `save` or `Saver` kept, the same on all workers that train together; None where there is no file.

    The last file of workers that were killed may arrive while their successors read: then these read again.
    """
    run = worker.job.run
    data = agreed(worker, lambda: run.read_bytes(*place) if run.exists(*place) else b"")
    return loaded(data) if data else None


def agreed(worker: Worker, read: Callable[[], bytes]) -> bytes:
    """What `read` gives, the same on all workers that train together: they read again until it is."""
    while True:
        data = read()
        if _is_the_same_everywhere(worker, zlib.crc32(data)):
            return data


def _is_the_same_everywhere(worker: Worker, number: int) -> bool:
    if worker.world == 1:
        return True
    most = torch.tensor([number, -number], dtype=torch.float64, device=worker.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return bool(most[0] == -most[1])


class Saver:
    """Keeps the state of a training while the training goes on: a thread writes one file at a time.

    So an object store that takes some seconds for a file does not hold up a GPU. Use it in a `with` block: the last
    file is written when the block ends. Worker 0 alone writes.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker, self._saved = worker, time.monotonic()
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1)

    def is_due(self) -> bool:
        """Whether to save now, after a step: each `runtime.checkpoint_minutes`, and as often as a file can be written
        when a machine of the training is about to be taken away."""
        if self._worker.is_preempted():
            return self._pending is None or self._pending.done()
        return time.monotonic() - self._saved >= 60 * self._worker.job.recipe.runtime.checkpoint_minutes

    def save(self, state: dict[str, Any], *place: str) -> None:
        """Copy the state now, and write it as soon as the file before is written.

        Raises the error of the file before, if it could not be written.
        """
        if self._worker.rank == 0:
            data = _as_bytes(state)
            self.wait()
            self._pending = self._thread.submit(self._worker.job.run.write_bytes, data, *place)
        self._saved = time.monotonic()

    def wait(self) -> None:
        """Until the last file is written. Raises its error, if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()


def _as_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def tensorboard(worker: Worker, name: str, losses: list[tuple[str, float]]) -> None:
    """Write a training's losses so far to `logs/tensorboard/<name>/`, as TensorBoard reads them. Worker 0 alone writes.

    The file is written anew after each epoch, so a run that goes on, here or on an object store, has every epoch once.

    Arguments:
        losses: tag and loss of each epoch.
    """
    from tensorboardX import SummaryWriter  # imports a client of S3: half a second in each process

    if worker.rank != 0:
        return
    steps: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for tag, loss in losses:
                steps[tag] = steps.get(tag, 0) + 1
                writer.add_scalar(tag, loss, steps[tag])
        (events,) = Path(folder).iterdir()
        worker.job.run.write_bytes(events.read_bytes(), "logs", "tensorboard", name, "events.out.tfevents.0")


def index(job: Job, table: Table[Any], other: Table[Any] | None = None) -> Index:
    """The training photos of a table, or of the one in its place, that did not fail, shard by shard.

    It reads the names in these tables, so a stage makes it once, on the driver, and hands it to its workers:
    `Runner.fit`.

    Arguments:
        table: has the shards.
        other: a table in which the photos must not have failed either; None: there is none.
    Raises RuntimeError where a shard of one of them is gone: with fewer photos the weights would be others.
    """
    tables = [own for own in (table, other) if own]
    for own in (IMAGES, *tables):
        if gone := set(job.shards(table, "train")).difference(job.shards(own, "train")):
            raise RuntimeError(f"{own.folder}: {min(gone)} is not there any more; run again, and it is made again")
    shards, starts, names, labels, has_mask = [], [0], [pa.array([], pa.string())], [], []
    for shard in job.shards(table, "train"):
        images = job.run.read_good(job.table(IMAGES), shard, ["labels", "mask_uri"])
        good = sorted(set(images).intersection(*(job.run.read_good(job.table(own), shard, []) for own in tables)))
        if good:
            shards.append(shard)
            starts.append(starts[-1] + len(good))
            names.append(pa.array(good))
            labels.append(np.array([len(images[i].labels) for i in good], np.uint8))
            has_mask.append(np.array([bool(images[i].mask_uri) for i in good]))
    joined = np.concatenate([np.empty(0, np.uint8), *labels]), np.concatenate([np.empty(0, bool), *has_mask])
    return Index(shards, np.array(starts), pa.concat_arrays(names), *joined)
