"""What grows on the driver with the number of photos: time and memory of the metadata path, without any photo.

    python benchmarks/metadata.py [--photos 1e5 1e6 1e7] [--files 1e6] [--step STEP]...

For each number of photos, each step (`list` and `count` need `write`) in a fresh process:

    listing     the data set's photos as the driver holds them, and the duplicates' check
    shards      cut into shards, and the rows that the Dataset of stage `images` is given
    photos      that Dataset's input: a block is the 32 rows of a shard
    names       the input of the Datasets of every other stage: a block is the name of a shard
    write       the table `images`, a Parquet file a shard (up to `--files` photos)
    list        the names of the shards that a table has
    count       every row's image_id and error, as the end of a stage reads them
    order       one epoch of training: the photos of every shard, shuffled within windows

Prints seconds and the peak of the process's memory (GB, what the interpreter and its imports take off) of each.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import ray

from wsseg_ray import datasets, pipeline, recipe
from wsseg_ray.engine import ray_runner, training
from wsseg_ray.engine.stage import Job
from wsseg_ray.stages import images
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, ImageRow, Row, plan_shards


def photos(count: int) -> list[datasets.Photo]:
    root = "/shared/VOC2012/JPEGImages"
    return [datasets.Photo(f"2008_{i:09d}", f"{root}/2008_{i:09d}.jpg", (i % 20,), "train") for i in range(count)]


def listing(count: int, _: str) -> int:
    found = photos(count)
    datasets._refuse_duplicates(found)
    return len(found)


def todo(count: int) -> dict[str, Sequence[Row] | None]:
    """The rows of each shard, as stage `images` makes them."""
    members = photos(count)
    return {
        f"train-{number:05d}": [images._row(members[i]) for i in own] for number, own in enumerate(plan_shards(count))
    }


def shards(count: int, _: str) -> int:
    return len(todo(count))


def blocks_of_photos(count: int, _: str) -> tuple[int, float]:
    return blocks(todo(count))


def blocks_of_names(count: int, _: str) -> tuple[int, float]:
    return blocks({f"train-{number:05d}": None for number in range(len(plan_shards(count)))})


def blocks(missing: dict[str, Sequence[Row] | None]) -> tuple[int, float]:
    """The input of an execution, as `RayRunner.map_shards` makes it, and its seconds once Ray is started."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    begin = time.perf_counter()
    made = ray_runner._input(missing, 1)
    seconds = time.perf_counter() - begin
    found = made.num_blocks()
    ray.shutdown()
    return found, seconds


def write(count: int, folder: str) -> int:
    run = RunDirectory.at(folder)
    for number, own in enumerate(plan_shards(count)):
        rows = [ImageRow(f"2008_{i:09d}", uri="/x", height=375, width=500, labels=np.array([1])) for i in own]
        run.write_shard(IMAGES, f"train-{number:05d}", rows)
    return len(plan_shards(count))


def names(count: int, folder: str) -> int:
    return len(RunDirectory.at(folder).shards("images"))


def rows(count: int, folder: str) -> int:
    job = Job(RunDirectory.at(folder), recipe.Recipe(), datasets.Listing([], [], []))
    return pipeline._count(job, "images", IMAGES)[0]


def order(count: int, _: str) -> int:
    members = [(f"train-{n:05d}", [f"2008_{i:09d}" for i in own]) for n, own in enumerate(plan_shards(count))]
    return len(training.epoch_order(members, np.random.default_rng(0)))


STEPS: dict[str, tuple[Callable, bool]] = {
    "listing": (listing, False),
    "shards": (shards, False),
    "photos": (blocks_of_photos, False),
    "names": (blocks_of_names, False),
    "write": (write, True),
    "list": (names, True),
    "count": (rows, True),
    "order": (order, False),
}


def measured(step: str, count: int, folder: str) -> tuple[int, float, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    found = STEPS[step][0](count, folder)
    seconds = time.perf_counter() - begin
    if isinstance(found, tuple):
        found, seconds = found
    return found, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=float, nargs="+", default=[1e5, 1e6, 1e7])
    parser.add_argument("--files", type=float, default=1e6, help="no table is written for more photos than this")
    parser.add_argument("--step", action="append", choices=STEPS, dest="steps")
    arguments = parser.parse_args()
    print(f"{'step':<10} {'photos':>10} {'found':>10} {'seconds':>9} {'GB':>7}")
    for count in map(int, arguments.photos):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            for step in arguments.steps or STEPS:
                if STEPS[step][1] and count > arguments.files:
                    continue
                with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                    found, seconds, memory = fresh.submit(measured, step, count, folder).result()
                print(f"{step:<10} {count:>10} {found:>10} {seconds:9.2f} {memory:7.2f}", flush=True)


if __name__ == "__main__":
    main()
