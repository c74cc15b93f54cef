"""Every stage against its own floor, and the thread of an actor, which a GPU would wait for.

    python benchmarks/speed_of_light.py RUN [--shards 4] [--launch 5]

`RUN` is a run directory that is done, and was made on this machine while it did nothing else. Two tables:

1. The floor of a stage: the rows of some shards are read, go through each of its steps, and are written, on one core,
   without Ray, notes or anything else. That, divided by the cores of this machine, is what a photo must take. The
   share is this floor divided by what the run took per photo. Of a training it is the share of the time in which steps
   were computed.
2. The thread of an actor with a GPU: it decodes columns, calls the kernel's `many`, and encodes its rows, while the GPU
   computes. Where there is no GPU, all that torch computes is kept, and the same is done again, now with the kept
   results in place of the computing: what remains is Python, NumPy, Arrow and about 4 microseconds per operation of
   torch. To that is added, per operation, `--launch` microseconds for the driver of a GPU, and the bytes between host
   and device at 10 GB/s. Where there is a GPU, the thread's time is as measured. Printed is the median of the shards.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wsseg_ray import pipeline
from wsseg_ray.engine.local import photo_kernel
from wsseg_ray.engine.shards import each, guard
from wsseg_ray.engine.stage import Job, Stage, open_run
from wsseg_ray.stages import features, score
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import decode, encode

WITH_GPU = (features.STAGE, score.STAGE)
LARGE = 2**20  # numbers; of larger results in full precision the shape alone is kept
COPY = 10e9  # bytes a second between host and device, by a copy that this thread waits for


class Kept(TorchDispatchMode):
    """Keeps what each operation of torch gives; the second time, gives that and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Any] = []
        self._again: Iterator[Any] | None = None

    def again(self) -> Kept:
        self._again = iter(self.results)
        return self

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._again is not None:
            return next(self._again)
        result = function(*args, **(kwargs or {}))
        large = isinstance(result, torch.Tensor) and result.dtype == torch.float32 and result.numel() > LARGE
        # Memory that nobody writes to takes no place
        self.results.append(torch.empty_strided(result.shape, result.stride()) if large else result)
        return result


class Floor(NamedTuple):
    """Milliseconds per photo on one core."""

    read: float
    steps: float
    write: float


def floor_of(job: Job, stage: Stage, shards: Sequence[str]) -> Floor:
    """What a stage must do with the photos of these shards: nothing but its own work."""
    assert stage.work is not None
    work, spent, photos = stage.work(job), [0.0, 0.0, 0.0], 0
    kernels = [photo_kernel(job, step) for step in work.steps]
    with tempfile.TemporaryDirectory() as folder:
        scratch = RunDirectory.at(folder)
        for place, shard in enumerate([shards[0], *shards]):
            start = time.monotonic()
            rows = work.read(job, shard)
            read = time.monotonic()
            for step, kernel in zip(work.steps, kernels, strict=True):
                rows, _ = each(job, (stage.name, shard, ""), kernel, step.row, rows, attempt=0)
            done = time.monotonic()
            scratch.write_shard(work.table, shard, rows)
            if place:  # the first time starts libraries
                photos += len(rows)
                seconds = (read - start, done - read, time.monotonic() - done)
                spent = [before + now for before, now in zip(spent, seconds, strict=True)]
    return Floor(*(1000 * seconds / photos for seconds in spent))


def thread_of(job: Job, stage: Stage, shards: Sequence[str], launch: float) -> dict[str, float]:
    """What an actor's thread does per photo of these shards."""
    assert stage.work is not None
    work = stage.work(job)
    prepare, step = work.steps[:2]
    kernel, has_gpu = step.kernel(job), torch.cuda.is_available()
    as_on_a_gpu(kernel)
    photos, spent, operations, there, back = 0, list[float](), 0, 0, 0
    for place, shard in enumerate([shards[0], *shards]):
        rows = [guard(lambda one: prepare.kernel(job, one), prepare.row, row) for row in work.read(job, shard)]
        table, kept = encode(prepare.row, rows), Kept()
        with torch.inference_mode(), kept:
            kernel._many(decode(prepare.row, table))
        with torch.inference_mode(), nullcontext() if has_gpu else kept.again():
            start = time.thread_time()
            found = encode(step.row, kernel._many(decode(prepare.row, table)))
            seconds = time.thread_time() - start
        if not has_gpu:
            seconds += launch * len(kept.results) + (table.nbytes + found.nbytes) / COPY
        if place:  # the first time starts libraries
            photos, operations = photos + len(rows), operations + len(kept.results)
            spent.append(1000 * seconds / len(rows))
            there, back = there + table.nbytes, back + found.nbytes
    return {
        "photos": photos,
        "ms": median(spent),
        "operations": operations / photos,
        "to": there / photos / 1e6,
        "from": back / photos / 1e6,
    }


def as_on_a_gpu(kernel: Any) -> None:
    """Let photos of unlike sizes pass together, where they would on a GPU."""
    backbone = getattr(kernel, "_backbone", None)
    if getattr(backbone, "is_local", False):
        alone = backbone.levels_by_size
        backbone.levels_by_size = lambda batches: (backbone.levels_together if len(batches) > 1 else alone)(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--launch", type=float, default=5.0, help="microseconds of the thread per operation")
    args = parser.parse_args()
    torch.set_num_threads(1)
    job = open_run(str(args.run))
    stages, cores = pipeline.stages_of(job.recipe), os.cpu_count() or 1
    print(f"{cores} cores; milliseconds per photo:")
    for stage in (stage for stage in stages if stage.writes in job.run.results):
        print(f"{stage.name:<20} {against_floor(job, stage, args.shards, cores)}")
    print("the thread of an actor with a GPU, per photo:")
    for stage in WITH_GPU:
        shards = job.run.shards(stage.writes, "train")[: args.shards]
        if shards:
            found = thread_of(job, stage, shards, args.launch / 1e6)
            print(
                f"{stage.name:<20} {found['photos']:4d} photos: {found['ms']:6.2f} ms, {found['operations']:.0f} "
                f"operations, {found['to']:.2f} MB to it, {found['from']:.2f} MB from it"
            )


def against_floor(job: Job, stage: Stage, count: int, cores: int) -> str:
    """A line of the first table."""
    entry = job.run.entry(stage.writes)
    if not entry or not entry["worked"]:
        return "not done by this run"
    took = 1000 * entry["seconds"] / entry["worked"]
    if stage.work is None:
        return f"took {took:8.2f}; computing in {entry['busy'] / entry['seconds']:.0%} of the time"
    shards = job.run.shards(stage.writes, "train") or job.run.shards(stage.writes)
    floor = floor_of(job, stage, shards[:count])
    parts = ", ".join(f"{name} {value:.2f}" for name, value in floor._asdict().items())
    return f"took {took:8.2f}; floor {sum(floor) / cores:8.2f} (on one core: {parts}): {sum(floor) / cores / took:.0%}"


if __name__ == "__main__":
    main()
