"""What both trainings on Ray Train share: the worker group, the order of photos, gradients, checkpoints, progress.

The photos of a batch are dealt out over the workers, and gradients are summed: the batch, the learning rate and the
loss are the same for any number of workers. A checkpoint an epoch is kept in the run; a worker group that starts again,
after a fault or in a new run, goes on from it.
"""

from __future__ import annotations

import _thread
import io
import math
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.train
import torch
import torch.distributed
from ray.train.torch import TorchTrainer
from tensorboardX import SummaryWriter

from wsseg_ray.stages.job import Job
from wsseg_ray.stages.meter import Meter
from wsseg_ray.stages.resources import needs
from wsseg_ray.stages.shards import root_cause
from wsseg_ray.tables import RunDirectory

MAX_FAILURES = 5  # machines that a training may lose; then the run stops, and goes on when it is run again
PROGRESS = "progress.json"
WINDOW = 16  # shards that are shuffled together: bounds what a worker holds

_told = [-math.inf]  # when this process told how far it is


def fit(
    job: Job, stage: str, folder: str, loop: Callable[[dict[str, Any]], None], total: int, photos: Index | None = None
) -> None:
    """Run a training loop on Ray Train, and show how far it is.

    Arguments:
        loop: given `{"job", "threads", "photos"}`; rank 0 writes `<folder>/progress.json` through `tell`.
        total: photos that the loop will see, over all epochs.
        photos: what the loop learns from. It is put into Ray's object store once; each worker reads it with `ray.get`.
    Raises RuntimeError where the loop fails for good, or does nothing for `runtime.no_progress_minutes`.
    """
    wanted = needs(job.recipe, stage)
    trainer = TorchTrainer(
        loop,
        train_loop_config={"job": job, "threads": wanted.threads, "photos": ray.put(photos or [])},
        scaling_config=ray.train.ScalingConfig(
            num_workers=wanted.most if wanted.least == wanted.most else (wanted.least, wanted.most),
            use_gpu=wanted.gpus > 0,
            resources_per_worker=wanted.bundle(),
        ),
        run_config=ray.train.RunConfig(
            name=f"{stage}-{uuid.uuid4().hex[:8]}",
            storage_path=job.run.uri("logs", "train"),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    with Meter(job, stage, "photos", total, wanted.most) as meter:
        watch = _Watch(job, stage, folder, meter)
        try:
            trainer.fit()
        except (KeyboardInterrupt, SystemExit):  # Ray Train answers an interrupt by the latter
            if watch.hung:
                raise RuntimeError(
                    f"{stage}: nothing was done for {job.recipe.runtime.no_progress_minutes:g} minutes "
                    f"(runtime.no_progress_minutes) after {watch.seen} of {total} photos; the trainers wait for "
                    f"{wanted.least} workers of {wanted.bundle()} or for each other. Run again to go on."
                ) from None
            raise
        except ray.train.TrainingFailedError as error:
            raise RuntimeError(f"{stage}: {root_cause(error)}") from error
        finally:
            watch.stop()
        meter.add(total - watch.seen, {"rows": total - watch.seen}, watch.note)


def tell(job: Job, folder: str, seen: int, note: str, busy: float, waited: float) -> None:
    """Say how far training is, at most once a second; rank 0 alone does.

    Arguments:
        seen: photos, over all epochs.
        note: what a person wants to know now.
        busy, waited: seconds that this process computed and waited for photos, since it began.
    """
    if ray.train.get_context().get_world_rank() == 0 and time.monotonic() - _told[0] > 1:
        _told[0] = time.monotonic()
        job.run.write_json({"seen": seen, "note": note, "busy": busy, "waited": waited}, folder, PROGRESS)


def epoch_order(members: list[tuple[str, list[str]]], rng: np.random.Generator) -> list[tuple[str, str]]:
    """All photos once, as (shard, image_id), shuffled within windows of shards.

    Shards come in random order; those of a window are mixed, so that a worker holds a window and no more.
    """
    order = rng.permutation(len(members))
    photos = []
    for start in range(0, len(order), WINDOW):
        window = [(members[i][0], image_id) for i in order[start : start + WINDOW] for image_id in members[i][1]]
        photos += [window[i] for i in rng.permutation(len(window))]
    return photos


def batches(photos: list[Any], size: int) -> Iterator[tuple[list[Any], int]]:
    """This worker's part of every batch, and the size of the whole batch."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    for start in range(0, len(photos), size):
        batch = photos[start : start + size]
        yield batch[rank::world], len(batch)


def step(loss: torch.Tensor | None, weight: float, optimizer: torch.optim.Optimizer) -> float:
    """One step of SGD on the mean over workers of `loss`, weighted; returns that mean.

    Arguments:
        loss: the mean over this worker's photos or cells; None where it has none.
        weight: how many of them it has. So the mean is that over the whole batch, however it is dealt out.
    Raises FloatingPointError, before the weights are changed, where the mean is not finite.
    """
    shared = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    device = ray.train.torch.get_device() if shared else "cpu"
    total_weight = torch.tensor(float(weight), device=device)
    if shared:
        torch.distributed.all_reduce(total_weight)
    share = weight / total_weight.clamp(min=1)
    optimizer.zero_grad(set_to_none=False)
    total = torch.zeros((), device=device)
    if loss is not None:
        (loss * share.to(loss.device)).backward()
        total = (loss.detach() * share.to(loss.device)).to(device)
    if shared:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
        torch.distributed.all_reduce(total)
    if not total.isfinite():
        raise FloatingPointError(f"the loss is {float(total)}: training diverged; a lower learning_rate may help")
    optimizer.step()
    return float(total)


def save(job: Job, state: dict[str, Any], *place: str) -> None:
    """Keep tensors and plain data in the run; rank 0 alone writes."""
    if ray.train.get_context().get_world_rank() == 0:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        job.run.write_bytes(buffer.getvalue(), *place)


def tensorboard(job: Job, name: str, losses: list[tuple[str, float]]) -> None:
    """Write a training's losses so far to `logs/tensorboard/<name>/`, as TensorBoard reads them; rank 0 alone writes.

    The file is written anew after each epoch: a run that goes on, here or on an object store, has every epoch once.

    Arguments:
        losses: tag and loss of each epoch.
    """
    if ray.train.get_context().get_world_rank() != 0:
        return
    steps: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for tag, loss in losses:
                steps[tag] = steps.get(tag, 0) + 1
                writer.add_scalar(tag, loss, steps[tag])
        (events,) = Path(folder).iterdir()
        job.run.write_bytes(events.read_bytes(), "logs", "tensorboard", name, "events.out.tfevents.0")


class Member(NamedTuple):
    """A photo that a training may learn from, and what decides whether it does."""

    image_id: str
    labels: int  # how many classes the photo has
    has_mask: bool


Index = list[tuple[str, list[Member]]]  # the photos of each shard


def index(run: RunDirectory, table: str) -> Index:
    """The training photos of a table that did not fail, shard by shard.

    It reads two tables whole, so a stage makes it once, on the driver, and hands it to its workers: `fit`.
    """
    found = []
    for shard in run.shards(table, "train"):
        images = run.read_good("images", shard, ["labels", "mask_uri"])
        good = sorted(image_id for image_id in run.read_good(table, shard, []) if image_id in images)
        members = [Member(i, len(images[i]["labels"]), bool(images[i]["mask_uri"])) for i in good]
        if members:
            found.append((shard, members))
    return found


def chosen(photos: Index, keep: Callable[[Member], bool] = lambda member: True) -> list[tuple[str, list[str]]]:
    """The image_ids of an index that a training learns from, shard by shard."""
    kept = [(shard, [member.image_id for member in members if keep(member)]) for shard, members in photos]
    return [(shard, ids) for shard, ids in kept if ids]


class _Watch:
    """Passes on to a meter what rank 0 tells, and interrupts a training that stands still for too long."""

    def __init__(self, job: Job, stage: str, folder: str, meter: Meter) -> None:
        self._job, self._folder, self._meter = job, folder, meter
        self.seen, self.note, self.hung = 0, "", False
        self._told = {"busy": 0.0, "waited": 0.0}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {stage}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        moved = time.monotonic()
        while not self._over.wait(1.0):
            state = self._job.run.read_json(self._folder, PROGRESS)
            if state and state["seen"] != self.seen:
                moved = time.monotonic()
                # A worker group that starts again counts its seconds from 0.
                spent = {key: state[key] - (old if state[key] >= old else 0) for key, old in self._told.items()}
                self._told = {key: state[key] for key in spent}
                self._meter.add(state["seen"] - self.seen, {"rows": state["seen"] - self.seen, **spent}, state["note"])
                self.seen, self.note = state["seen"], state["note"]
            elif time.monotonic() - moved > 60 * self._job.recipe.runtime.no_progress_minutes:
                self.hung = True
                _thread.interrupt_main()
                return
