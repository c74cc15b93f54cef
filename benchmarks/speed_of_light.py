"""Every stage against its own floor, and the thread of an actor, which a GPU would wait for.

    python benchmarks/speed_of_light.py RUN [--shards 4] [--launch 5]

`RUN` is a run directory that is done, and was made on this machine while it did nothing else. Prints:

1. The floor of a stage: the rows of some shards are read, go through each of its steps, and are written, on one core,
   without Ray, notes or anything else. That, divided by the cores of this machine, is what a photo must take. The
   share is this floor divided by what the run took per photo. Of a training it is the share of the time in which steps
   were computed.
2. The thread of an actor with a GPU: it decodes columns, calls the kernel's `many`, and encodes its rows, while the GPU
   computes. Where there is no GPU, all that torch computes is kept, and the same is done again, now with the kept
   results in place of the computing: what remains is Python, NumPy, Arrow and about 4 microseconds per operation of
   torch. To that is added, per operation, `--launch` microseconds for the driver of a GPU, and the bytes between host
   and device at 10 GB/s. Where there is a GPU, the thread's time is as measured. Printed is the median of the shards.
3. How busy a GPU would be, by a count: each operation takes as long as its multiplications at 40 % of the GPU's peak in
   bfloat16, or as its bytes at the speed of its memory, whichever is longer. An actor's thread and its GPU take turns,
   so one actor keeps a GPU busy for network / (network + thread) of the time. Printed is this share, how many actors
   on one GPU make it 90 %, and how many cores tasks need then to read, prepare and write.
"""

from __future__ import annotations

import argparse
import math
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
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from wsseg_ray import pipeline
from wsseg_ray.engine.local import photo_kernel
from wsseg_ray.engine.shards import each, guard
from wsseg_ray.engine.stage import Job, Stage, open_run
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import decode, encode

TOGETHER = ("features", "features_segmenter", "score")  # stages whose actors take many photos at once on a GPU
BUSY = 0.9  # share of the time in which a GPU should compute
EFFICIENCY = 0.4  # of a GPU's peak, in a product of matrices
LARGE = 2**20  # numbers; of larger results in full precision the shape alone is kept
COPY = 10e9  # bytes a second between host and device, by a copy that this thread waits for
HALF = 2  # bytes of a number in bfloat16


class Gpu(NamedTuple):
    """What its maker says of a GPU: operations a second in bfloat16, and bytes a second of its memory."""

    peak: float
    memory: float


GPUS = {"A10G": Gpu(70e12, 600e9), "H100": Gpu(989e12, 3.35e12)}


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


class Counted(TorchDispatchMode):
    """Counts the seconds that operations would take on each of GPUS, see the module's text."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(GPUS, 0.0)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        returned = [one.alias_info for one in function._schema.returns]
        if all(alias is not None and not alias.is_write for alias in returned):
            return result  # another view of the same memory
        count = flop_registry.get(function.overloadpacket)
        work = count(*args, **(kwargs or {}), out_val=result) if count else 0
        moved = sum(bytes_of(own) for own in tree_leaves((args, kwargs, result)) if isinstance(own, torch.Tensor))
        if "embedding_bag" in str(function):  # rows are read again and again: `sums_over`
            work, moved = 2 * args[1].numel() * args[0].shape[1], 4 * args[1].numel() * args[0].shape[1]
        for name, gpu in GPUS.items():
            self.seconds[name] += max(work / (EFFICIENCY * gpu.peak), moved / gpu.memory)
        return result


def bytes_of(tensor: torch.Tensor) -> int:
    """On a GPU, where numbers of single precision are in half precision."""
    return tensor.numel() * (HALF if tensor.dtype == torch.float32 else tensor.element_size())


class Floor(NamedTuple):
    """Milliseconds per photo on one core."""

    read: float
    steps: float
    write: float


def floor_of(job: Job, stage: Stage, shards: Sequence[str], beside_actor: bool = False) -> Floor:
    """What a stage must do with the photos of these shards: nothing but its own work.

    Arguments:
        beside_actor: without what its actor does.
    """
    assert stage.work is not None
    work, spent, photos = stage.work(job), [0.0, 0.0, 0.0], 0
    kernels = [photo_kernel(job, step) for step in work.steps]
    with tempfile.TemporaryDirectory() as folder:
        scratch = RunDirectory.at(folder)
        for place, shard in enumerate([shards[0], *shards]):
            start = time.monotonic()
            rows = work.read(job, shard)
            read = time.monotonic()
            actor = 0.0
            for step, kernel in zip(work.steps, kernels, strict=True):
                rows, seconds = each(job, (stage.name, shard, ""), kernel, step.row, rows, attempt=0)
                actor += seconds * (step.actor and beside_actor)
            done = time.monotonic()
            scratch.write_shard(work.table, shard, rows)
            if place:  # the first time starts libraries
                photos += len(rows)
                parts = (read - start, done - read - actor, time.monotonic() - done)
                spent = [before + now for before, now in zip(spent, parts, strict=True)]
    return Floor(*(1000 * seconds / photos for seconds in spent))


def thread_of(job: Job, stage: Stage, shards: Sequence[str], launch: float) -> dict[str, float]:
    """What an actor's thread does per photo of these shards."""
    assert stage.work is not None
    work = stage.work(job)
    prepare, step = work.steps[:2]
    kernel, has_gpu = step.kernel(job), torch.cuda.is_available()
    as_on_a_gpu(kernel)
    network = dict.fromkeys(GPUS, 0.0)
    photos, spent, operations, there, back = 0, list[float](), 0, 0, 0
    for place, shard in enumerate([shards[0], *shards]):
        rows = [guard(lambda one: prepare.kernel(job, one), prepare.row, row) for row in work.read(job, shard)]
        table, kept, counted = encode(prepare.row, rows), Kept(), Counted()
        with torch.inference_mode(), counted, kept:
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
            network = {name: network[name] + seconds for name, seconds in counted.seconds.items()}
    return {
        "photos": photos,
        "ms": median(spent),
        "operations": operations / photos,
        "to": there / photos / 1e6,
        "from": back / photos / 1e6,
        **{name: 1000 * seconds / photos for name, seconds in network.items()},
    }


def duty(gpu: str, found: dict[str, float], tasks: float) -> str:
    """How busy a GPU would be.

    Arguments:
        found: by `thread_of`.
        tasks: milliseconds of a core per photo, of the tasks beside the actor.
    """
    network, thread = found[gpu], found["ms"]
    share = network / (network + thread)
    actors = math.ceil(BUSY / share)
    busy = min(1, actors * share)
    cores = busy * tasks / network
    more = f"with {actors} actors {busy:.0%} and {cores:.1f} cores for tasks"
    return f"{gpu}: network {network:.2f} ms, busy {share:.0%}; {more}"


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
    for stage in stages:
        shards = job.run.shards(stage.writes, "train") or job.run.shards(stage.writes)
        if shards and stage.name in TOGETHER:
            found = thread_of(job, stage, shards[: args.shards], args.launch / 1e6)
            floor = floor_of(job, stage, shards[:1], beside_actor=True)
            print(
                f"{stage.name:<20} {found['photos']:4d} photos: {found['ms']:6.2f} ms, {found['operations']:.0f} "
                f"operations, {found['to']:.2f} MB to it, {found['from']:.2f} MB from it"
            )
            for gpu in GPUS:
                print(f"{'':<20} {duty(gpu, found, sum(floor))}")


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
