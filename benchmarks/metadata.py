"""What the driver does with the names of many photos: seconds and memory, without opening any photo.

    python benchmarks/metadata.py [--photos 1e5 1e6 1e7] [--pixels 200000] [--step STEP]...

Each step runs in a process of its own. Its table files are real: the rows of one shard, written again under the name
of each shard.

    listing     the photos' file, sorted and without duplicates; its digest; and the files that tasks read their shards
                from: all that happens before the first task
    input       the input of a Dataset of every stage: a block is the names of the shards of a task
    counts      photos and failed photos of each shard, as tasks told them
    footers     the same from the ends of the shards' files, as after a driver was killed
    metrics     the numbers of stage `images` for the report
    index       the photos that a training may learn from, of two tables
    order       the order of one epoch

Prints for each: what was found, seconds, and the peak of the process's memory without the interpreter and its imports.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from wsseg_ray import recipe
from wsseg_ray.datasets import Listing, Photo
from wsseg_ray.datasets.spool import Photos, digest_of
from wsseg_ray.engine import ray_runner, shards, training
from wsseg_ray.engine.stage import Job
from wsseg_ray.stages import images, listing
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, SUPERVISION, ImageRow, SupervisionRow, shard_size


def name(number: int) -> str:
    return f"2008_{number:09d}"


def photos(count: int) -> Iterator[Photo]:
    root = "/shared/VOC2012/JPEGImages"
    return (Photo(name(i), f"{root}/{name(i)}.jpg", (i % 20,), "train", f"/masks/{name(i)}.png") for i in range(count))


def job_at(folder: str, listed: Listing | None = None) -> Job:
    return Job(RunDirectory.at(folder), recipe.Recipe(), listed or Listing([str(k) for k in range(20)], [], []))


def write_tables(count: int, pixels: int, folder: str) -> int:
    """The tables `images` and `supervision`; every shard has the rows of the first one."""
    size, run = shard_size(count, pixels), RunDirectory.at(folder)
    one = np.array([1], np.int32)
    rows = [
        ImageRow(name(i), uri=f"/x/{name(i)}.jpg", height=375, width=500, labels=one, split="train")
        for i in range(size)
    ]
    run.write_shard(IMAGES, "first", rows)
    run.write_shard(SUPERVISION, "first", [SupervisionRow(row.image_id, labels=one) for row in rows])
    number = math.ceil(count / size)
    for table in (IMAGES, SUPERVISION):
        data = run.read_bytes(table.folder, "first.parquet")
        run.delete(table.folder, "first.parquet")
        for shard in range(number):
            Path(folder, table.folder, f"train-{shard:05d}.parquet").write_bytes(data)
    run.write_json({f"train-{shard:05d}": (size, 0) for shard in range(number)}, IMAGES.folder, shards.COUNTED)
    return number


def of_listing(count: int, pixels: int, folder: str) -> int:
    listed = Listing([], [], Photos(photos(count)))
    digest_of(listed.photos)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        return sum(listing.write(job_at(own, listed), pixels).values())


def of_input(count: int, pixels: int, folder: str) -> tuple[int, float]:
    """The blocks of an execution, as `RayRunner` makes them, and their seconds once Ray is started."""
    names = [f"train-{n:05d}" for n in range(math.ceil(count / shard_size(count, pixels)))]
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    begin = time.perf_counter()
    found = ray_runner._input(names, -(-len(names) // ray_runner.MAX_TASKS)).num_blocks()
    seconds = time.perf_counter() - begin
    ray.shutdown()
    return found, seconds


def of_counts(count: int, pixels: int, folder: str) -> int:
    return sum(rows for rows, _ in shards.counts(job_at(folder), IMAGES).values())


def of_footers(count: int, pixels: int, folder: str) -> int:
    return sum(rows for rows, _ in RunDirectory.at(folder).counts(IMAGES, {}).values())


def of_metrics(count: int, pixels: int, folder: str) -> int:
    found = images.STAGE.metrics(job_at(folder))["data"]
    return int(found["train"] + found["val"])


def of_index(count: int, pixels: int, folder: str) -> int:
    return len(training.index(job_at(folder), SUPERVISION))


def of_order(count: int, pixels: int, folder: str) -> int:
    size = shard_size(count, pixels)
    starts = np.append(np.arange(0, count, size), count)
    names = pa.array(name(i) for i in range(count))
    every = training.Index([str(n) for n in starts[1:]], starts, names, np.ones(count, np.uint8), np.zeros(count, bool))
    return len(training.epoch_order(every, np.random.default_rng(0)))


STEPS: dict[str, Callable[[int, int, str], int | tuple[int, float]]] = {
    "listing": of_listing,
    "input": of_input,
    "counts": of_counts,
    "footers": of_footers,
    "metrics": of_metrics,
    "index": of_index,
    "order": of_order,
}


def measured(step: str, count: int, pixels: int, folder: str) -> tuple[int, float, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    found = STEPS[step](count, pixels, folder)
    seconds = time.perf_counter() - begin
    if isinstance(found, tuple):
        found, seconds = found
    return found, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=float, nargs="+", default=[1e5, 1e6, 1e7])
    parser.add_argument("--pixels", type=int, default=200_000, help="of a photo: they bound how many a shard has")
    parser.add_argument("--step", action="append", choices=STEPS, dest="steps")
    arguments = parser.parse_args()
    print(f"{'step':<10} {'photos':>10} {'found':>10} {'seconds':>9} {'GB':>7}")
    for count in map(int, arguments.photos):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            print(f"{count} photos in {write_tables(count, arguments.pixels, folder)} shards")
            for step in arguments.steps or STEPS:
                with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                    found, seconds, memory = fresh.submit(measured, step, count, arguments.pixels, folder).result()
                print(f"{step:<10} {count:>10} {found:>10} {seconds:9.2f} {memory:7.2f}", flush=True)


if __name__ == "__main__":
    main()
