"""Trainings on 1, 2 and 4 workers: photos read, bytes exchanged, weights.

    python -m benchmarks.workers RUN [--workers 1 2 4] [--set key=value]...

`RUN` is a run with stored features. Copies of it train HCP and the networks AN_A, SN_A, AN_B and SN_B anew, for a few
epochs, on Ray with as many workers, whatever the number of cores. Each worker process notes which photos it reads from
stored features, and how many bytes of gradients it gives to the others.

Prints per training and number of workers: how often a photo is read by all workers together; MB of gradients per step
and worker; seconds; and the largest difference of a weight from that of one worker, as a share of its tensor's largest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
import torch

from wsseg_ray import pipeline, recipe
from wsseg_ray.engine import training
from wsseg_ray.engine.checkpoints import WEIGHTS, restore
from wsseg_ray.engine.ray_runner import ENVIRONMENT
from wsseg_ray.engine.stage import open_run
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import PROPOSALS

ROOT = Path(__file__).parent.parent
NOTES = "WSSEG_NOTES"  # variable of worker processes: the folder of their notes
NETWORKS = ("AN_A", "SN_A", "AN_B", "SN_B")
SHORT = (
    "hcp.image_epochs=2",
    "hcp.hypothesis_epochs=1",
    "hcp.region_epochs=1",
    "segmentation.epochs=2",
    "segmentation.rounds=0",
    "segmentation.ablation=false",
    f"segmentation.networks=[{', '.join(NETWORKS)}]",
)


def watch() -> None:
    """Runs when a worker process begins: what this benchmark counts, is noted."""
    from wsseg_ray.stages import feed, train_hcp

    for kind in (train_hcp.Feed, feed.StoredFeed):
        kind._load = _noted(kind._load)  # type: ignore[attr-defined]
    shared = training.shared

    def watched(worker: Any, objective: torch.nn.Module) -> torch.nn.Module:
        found = shared(worker, objective)
        if worker.world > 1:
            found.register_comm_hook(None, _exchange)
        return found

    training.shared = watched


def _noted(load: Any) -> Any:
    def noted(self: Any, shard: str) -> Any:
        found = load(self, shard)
        _note("photos", len(found))
        return found

    return noted


def _exchange(_, bucket):  # type: ignore[no-untyped-def]  # torch wants its own type here, or none
    """What DistributedDataParallel does without a hook, and a note."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    _note("bytes", bucket.buffer().nbytes)
    if bucket.is_last():
        _note("steps", 1)
    return default_hooks.allreduce_hook(None, bucket)


def _note(kind: str, count: int) -> None:
    with Path(os.environ[NOTES], str(os.getpid())).open("a") as file:
        file.write(f"{kind} {count}\n")


def counted(folder: Path) -> Counter[str]:
    """The sums of all notes."""
    found = Counter[str]()
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            kind, count = line.split()
            found[kind] += int(count)
    return found


def trained(source: Path, stage: str, workers: int, settings: list[str]) -> tuple[dict[str, Any], float, Counter[str]]:
    """The weights of a training by network, its seconds, and what its workers noted."""
    with tempfile.TemporaryDirectory(prefix="wsseg-workers-") as place:
        notes, copy = Path(place, "notes"), Path(place, "run")
        notes.mkdir()
        shutil.copytree(source, copy, symlinks=True)
        words = str(copy / "recipe.yaml")
        if stage == "train_segmenter":  # what is before it is the same for any number of workers, and not counted
            pipeline.run(recipe.load(words, [*settings, "runtime.engine=local"]), str(copy), until="supervise")
        begin = time.monotonic()
        ray.init(
            address="local",
            num_cpus=2 * workers + 2,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={
                "worker_process_setup_hook": "benchmarks.workers.watch",
                "env_vars": {NOTES: str(notes), "PYTHONPATH": str(ROOT)},
            },
        )
        try:
            more = [*settings, f"runtime.num_workers={workers}", "runtime.engine=ray"]
            more += [f"runtime.stages.{one}.cpus=1" for one in ("train_hcp", "train_segmenter")]
            pipeline.run(recipe.load(words, more), str(copy), until=stage)
        finally:
            ray.shutdown()
        seconds, run = time.monotonic() - begin, RunDirectory.at(str(copy)).now()
        places = [("hcp",)] if stage == "train_hcp" else [("segmenters", name) for name in NETWORKS]
        return {" ".join(own): restore(run, *own, WEIGHTS) for own in places}, seconds, counted(notes)


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest, as a share of the tensor's largest number."""
    found = 0.0
    for name, tensors in one.items():
        for key, tensor in tensors.items():
            if tensor.is_floating_point():
                apart = (tensor - other[name][key]).abs().max() / tensor.abs().max().clamp(min=1e-12)
                found = max(found, float(apart))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()
    os.environ |= ENVIRONMENT
    photos = len(training.index(open_run(str(args.run)), PROPOSALS))
    for stage in ("train_hcp", "train_segmenter"):
        first: dict[str, Any] = {}
        for workers in args.workers:
            weights, seconds, notes = trained(args.run, stage, workers, [*SHORT, *args.settings])
            first = first or weights
            steps = notes["steps"] // workers
            times, exchanged = notes["photos"] / photos, notes["bytes"] / max(1, notes["steps"]) / 1e6
            apart = difference(first, weights)
            print(
                f"{stage:<16} {workers} workers: each photo read {times:.2f} times; {exchanged:.2f} MB of gradients "
                f"per step and worker in {steps} steps; {seconds:.0f} s, weights {apart:.1e} apart",
                flush=True,
            )


if __name__ == "__main__":
    main()
