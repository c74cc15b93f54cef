"""The runner without Ray: the same work in one process, shard after shard.

For unit tests, debugging, notebooks, and to measure what Ray costs. It writes the same tables.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from wsseg_ray.engine import resources, shards
from wsseg_ray.engine.meter import Meter
from wsseg_ray.engine.resources import Needs, Node
from wsseg_ray.engine.shards import OnOneThread
from wsseg_ray.engine.stage import Job, Stage, Step, Work, Worker
from wsseg_ray.engine.trace import TRACED_SHARDS, TRACED_STEPS, Trace
from wsseg_ray.recipe import Recipe
from wsseg_ray.tables import Row, decode, encode

STEPS_A_READ = 16  # training steps that are read together: they share the shards that they need


class LocalRunner:
    """Runs the work of stages in this process; implements `engine.stage.Runner`."""

    def __init__(self) -> None:
        self.nodes = [Node(_cores(), _gpus(), 0)]

    def check(self, recipe: Recipe, stages: Sequence[Stage]) -> None:
        for stage in stages:
            resources.asked(recipe, stage)

    def ask_for(self, job: Job, stage: Stage) -> None:
        """There is this machine alone."""

    def needs(self, job: Job, stage: Stage) -> Needs:
        wanted = resources.needs(job.recipe, stage, self.nodes)
        threads = wanted.threads if wanted.gpus else max(1, _cores())
        return Needs(wanted.cpus, wanted.gpus, wanted.memory, 1, 1, threads)

    def map_shards(self, job: Job, stage: Stage, work: Work[Any], todo: Sequence[str]) -> int:
        done = set(job.run.shards(work.table.folder))
        missing = [shard for shard in todo if shard not in done]
        if not missing:
            return 0
        kernels, threads = [photo_kernel(job, step) for step in work.steps], self.needs(job, stage).threads
        has_actor = any(step.actor for step in work.steps)
        tally, trace = shards.Tally(job, stage.name, work.table), Trace(job, stage.name, *TRACED_SHARDS)
        with self._meter(job, stage, "shards", len(missing), has_actor) as meter, tally:
            for shard in missing:
                if has_actor:
                    trace.step()
                start = time.monotonic()
                rows = work.read(job, shard)
                spent = {"read": time.monotonic() - start, "write": 0.0, "busy": 0.0}
                for step, kernel in zip(work.steps, kernels, strict=True):
                    name = shards.step_name(step, step is work.steps[-1])
                    place, at_once = (stage.name, shard, name), threads if step.actor else 1
                    rows, seconds = shards.each(job, place, kernel, step.row, rows, at_once)
                    spent["busy" if step.actor else name] += seconds
                    rows = as_sent(step.row, rows)
                start = time.monotonic()
                job.run.write_shard(work.table, shard, rows)
                spent["write"] += time.monotonic() - start
                errors = [row.error for row in rows if row.error]
                tally.add(shard, len(rows), errors)
                meter.add(1, {"rows": len(rows), "failed": len(errors), **spent}, tally.note)
        tally.refuse_all_failed(resumed=bool(done))
        return tally.photos

    def map_reduce(self, job: Job, name: str, kernel: Callable[[Job, str], Any], todo: Sequence[str]) -> Iterator[Any]:
        return (kernel(job, shard) for shard in todo)

    def call(self, job: Job, stage: Stage, function: Callable[[Job], None]) -> None:
        import torch

        torch.set_num_threads(self.needs(job, stage).threads)
        function(job)

    def fit(self, job: Job, stage: Stage, loop: Callable[[Worker], None], total: int, photos: Any) -> None:
        with self._meter(job, stage, "photos", total, True) as meter:
            worker = LocalWorker(job, stage.name, self.needs(job, stage).threads, photos, meter)
            loop(worker)
            meter.add(total - worker.seen, {"rows": total - worker.seen}, worker.note)

    def _meter(self, job: Job, stage: Stage, unit: str, total: int, busy: bool) -> Meter:
        here = {"CPU": self.nodes[0].cpus, "GPU": self.nodes[0].gpus}
        return Meter(job, stage.name, unit, total, int(busy), lambda: here)


class LocalWorker:
    """The one worker of a training; implements `engine.stage.Worker`."""

    def __init__(self, job: Job, stage: str, threads: int, photos: Any, meter: Meter) -> None:
        import torch

        from wsseg_ray.engine.device import device_of

        torch.set_num_threads(threads)
        self.seen, self.note, self._spent, self._meter = 0, "", {"busy": 0.0, "waited": 0.0}, meter
        self.job, self.rank, self.world, self.threads, self.photos = job, 0, 1, threads, photos
        self._trace = Trace(job, stage, *TRACED_STEPS)
        self.device = device_of(job.recipe)

    def alone(self) -> LocalWorker:
        return self

    def tell(self, seen: int, note: str, busy: float, waited: float) -> None:
        self._trace.step()
        spent = {"busy": busy - self._spent["busy"], "waited": waited - self._spent["waited"]}
        self._meter.add(seen - self.seen, {"rows": seen - self.seen, **spent}, note)
        self.seen, self.note, self._spent = seen, note, {"busy": busy, "waited": waited}

    def report(self, metrics: dict[str, Any]) -> None:
        """Nobody else waits."""

    def is_preempted(self) -> bool:
        return False

    def stream(
        self, steps: Iterator[dict[str, Any]], read: Callable[[dict[str, np.ndarray]], Iterator[dict[str, np.ndarray]]]
    ) -> Iterator[dict[str, Any]]:
        import torch

        while rows := list(islice(steps, STEPS_A_READ)):
            for arrays in read(columns(rows)):
                yield {name: torch.from_numpy(array[0]).to(self.device) for name, array in arrays.items()}


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows of plain data as columns, as Ray Data hands them over."""
    found = {}
    for name in rows[0]:
        found[name] = np.empty(len(rows), object)
        found[name][:] = [row[name] for row in rows]
    return found


def as_sent(row: type[Row], rows: Sequence[Row]) -> list[Row]:
    """Rows as they reach the next step on Ray, and as they are stored: each column with the type that it has."""
    return decode(row, encode(row, rows))


def photo_kernel(job: Job, step: Step) -> Callable[[Any], Row]:
    """What a step does with a row, in this process."""
    return OnOneThread(step.kernel(job)) if step.actor else partial(step.kernel, job)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
