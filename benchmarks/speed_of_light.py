"""How long does the thread of an actor work per photo, beside the network, and what travels to it and from it?

    python benchmarks/speed_of_light.py RUN [--shards 4] [--launch 5]

`RUN` is a run directory whose stages came at least to `score`, with stored features. The rows of a shard, as the tasks
before the actor make them, go through what an actor with a GPU does: columns are decoded, the kernel's `many` is
called, its rows are encoded. A GPU computes meanwhile. Where there is no GPU, all that torch computes is kept,
and the same is done again, now with the kept results in place of the computing: what remains is Python, NumPy, Arrow
and about 4 microseconds per operation of torch. To that is added, per operation, `--launch` microseconds for the driver
of a GPU, and the bytes between host and device at 10 GB/s. Where there is a GPU, the thread's time is as measured.

Prints, per stage, milliseconds of the thread per photo, operations per photo, and bytes to and from the actor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wsseg_ray.engine.shards import guard
from wsseg_ray.engine.stage import Job, Stage, open_run
from wsseg_ray.stages import features, score
from wsseg_ray.tables import decode, encode

STAGES = (features.STAGE, score.STAGE)
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


def measure(job: Job, stage: Stage, shards: Sequence[str], launch: float) -> dict[str, float]:
    """What an actor's thread does per photo of these shards."""
    assert stage.work is not None
    work = stage.work(job)
    prepare, step = work.steps[:2]
    kernel, has_gpu = step.kernel(job), torch.cuda.is_available()
    photos, spent, operations, there, back = 0, 0.0, 0, 0, 0
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
            photos, spent, operations = photos + len(rows), spent + seconds, operations + len(kept.results)
            there, back = there + table.nbytes, back + found.nbytes
    return {
        "photos": photos,
        "ms": 1000 * spent / photos,
        "operations": operations / photos,
        "to": there / photos / 1e6,
        "from": back / photos / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--launch", type=float, default=5.0, help="microseconds of the thread per operation")
    args = parser.parse_args()
    torch.set_num_threads(1)
    job = open_run(str(args.run))
    for stage in STAGES:
        shards = job.run.shards(stage.writes, "train")[: args.shards]
        found = measure(job, stage, shards, args.launch / 1e6)
        print(
            f"{stage.name:<10} {found['photos']:4d} photos: {found['ms']:6.2f} ms per photo of the actor's thread, "
            f"{found['operations']:.0f} operations, {found['to']:.2f} MB to it, {found['from']:.2f} MB from it"
        )


if __name__ == "__main__":
    main()
