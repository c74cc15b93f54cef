"""What does Ray cost? The whole demo under Ray against the same kernels called in a plain loop, stage by stage.

    python benchmarks/overhead.py [--set key=value]...

The loop is one fresh process without Ray: it reads each shard, calls the stage's kernels on its photos, one after the
other, and writes the shard; trainings are fed by the same function in the same process. Torch has as many threads as
there are cores. Under Ray it is `wsseg run demo`, with Ray's start and end.

Prints seconds a stage, the loop's over Ray's (above 1: Ray is faster, for it uses the second core), whether the tables
and the weights are equal, and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.kills import differences, same_weights
from wsseg_ray import pipeline, recipe
from wsseg_ray.datasets import demo
from wsseg_ray.stages import feed, predict, proposals, refine, resources, score, shards, supervise, train_segmenter
from wsseg_ray.stages import images as images_stage
from wsseg_ray.stages.job import Job
from wsseg_ray.tables import SCHEMAS, RunDirectory

CORES = len(os.sched_getaffinity(0))


def plain_map_shards(job, stage, target, todo, load, kernel, actor=None, finish=None, resources=None) -> int:
    """`map_shards` without Ray."""
    instance, count = actor(job) if actor else None, 0
    for shard, known in todo.items():
        rows = [shards.guard(lambda row: kernel(job, row), row) for row in load(job, shard, known)]
        if instance:
            rows = [shards.guard(instance, row) for row in rows]
        if finish:
            rows = [shards.guard(lambda row: finish(job, row), row) for row in rows]
        job.run.write_shard(target, shard, rows)
        count += len(rows)
    return count


def plain_fit(job, stage, folder, loop, total) -> None:
    loop({"job": job, "threads": CORES})


def plain_stream(job: Job, steps: Iterator[feed.Step], device: torch.device) -> Iterator[tuple]:
    """`feed.stream` without Ray: tasks' worth of steps, read when they are needed."""
    pending: list[feed.Step] = []

    def read() -> Iterator[tuple]:
        rows = feed.read_batches(job, {"step": np.array([pickle.dumps(step) for step in pending], object)})
        for step, row in zip(pending, rows, strict=True):
            arrays = (torch.from_numpy(row[key][0]) for key in ("photos", "targets"))
            yield step, feed.Batch(*arrays, row["numbers"][0].tolist()), 0.0

    for step in steps:
        pending.append(step)
        if len(pending) == feed.STEPS_A_TASK:
            yield from read()
            pending.clear()
    if pending:
        yield from read()


def plain_sums(job: Job, names: list[str]) -> tuple[np.ndarray, ...]:
    parts = [refine._shard_sums(job, {"shard": name})["sums"] for name in names]
    return tuple(sum(part) for part in zip(*parts, strict=True))


def plain(root: str, settings: list[str]) -> dict[str, float]:
    """Seconds of every stage without Ray, in this process."""
    torch.set_num_threads(CORES)
    job = pipeline.prepare(recipe.load("demo", settings), RunDirectory.at(root))
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    node = resources.Node(CORES, 0, 0)
    patches: list[tuple[Any, str, Any]] = [
        *((module, "map_shards", plain_map_shards) for module in (images_stage, proposals, score, refine, supervise)),
        (predict, "map_shards", plain_map_shards),
        (resources, "cluster", lambda recipe: [node]),
        (refine, "_reduce", plain_sums),
        (train_segmenter, "stream", plain_stream),
        (train_segmenter.training, "fit", plain_fit),
        (train_segmenter.ray.train, "get_context", lambda: context),
        (train_segmenter.ray.train, "report", lambda metrics: None),
        (train_segmenter.ray.train.torch, "get_device", lambda: torch.device("cpu")),
        # The PCA's sample is taken by a remote function.
        (score.ray, "remote", lambda **_: lambda call: SimpleNamespace(remote=call)),
        (score.ray, "get", lambda done: done),
    ]
    for module, name, value in patches:
        mock.patch.object(module, name, value).start()
    seconds = {}
    for name, stage in pipeline.STAGES.items():
        begin = time.perf_counter()
        stage.run(job)
        seconds[name] = time.perf_counter() - begin
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the pipeline does
    with tempfile.TemporaryDirectory() as folder:
        demo.draw(Path(folder) / "photos", 0, None)
        settings = ["dataset.layout=voc", f"dataset.root={folder}/photos", *parser.parse_args().settings]
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            begin = time.perf_counter()
            alone = fresh.submit(plain, f"{folder}/plain", settings).result()
            alone_all = time.perf_counter() - begin
        run = RunDirectory.at(f"{folder}/ray")
        words = [sys.executable, "-m", "wsseg_ray", "run", "demo", "--run-dir", run.root]
        begin = time.perf_counter()
        subprocess.run(
            [*words, *(word for setting in settings for word in ("--set", setting))],
            check=True,
            env={**os.environ, "RAY_ADDRESS": "local"},
        )
        together_all = time.perf_counter() - begin
        together = {name: run.read_json("stages", f"{name}.json")["seconds"] for name in pipeline.STAGES}
        other = RunDirectory.at(f"{folder}/plain")
        unlike = {table: differences(other, run, table)[1] for table in SCHEMAS}
        networks = [name for name in run.names("segmenters") if run.exists("segmenters", name, "network.pt")]
        places = [("hcp",), *(("segmenters", name) for name in networks)]
        weights = {"/".join(place): same_weights(other, run, place) for place in places}
    print(f"{'stage':<16} {'loop s':>8} {'Ray s':>8} {'loop / Ray':>11}")
    for name in pipeline.STAGES:
        print(f"{name:<16} {alone[name]:8.1f} {together[name]:8.1f} {alone[name] / together[name]:11.2f}")
    for title, a, b in (
        ("start, report", alone_all - sum(alone.values()), together_all - sum(together.values())),
        ("all", alone_all, together_all),
    ):
        print(f"{title:<16} {a:8.1f} {b:8.1f} {a / b:11.2f}")
    print(f"rows unlike: {unlike}\nweights equal: {weights}")
    print(json.dumps({"plain": alone, "ray": together, "plain_all": alone_all, "ray_all": together_all}))


if __name__ == "__main__":
    main()
