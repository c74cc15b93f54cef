"""Kill -9 the driver in five stages of one run; are the tables those of an undisturbed run, row for row?

    python -m benchmarks.kills [--set key=value]...

Prints one line a kill, one a table, and a JSON line. Takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsseg_ray.datasets import demo
from wsseg_ray.engine.stage import open_run
from wsseg_ray.pipeline import stages_of
from wsseg_ray.stages import segmenters
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, PREDICTIONS, PROPOSALS, REFINED, SCORES, SUPERVISION, Table, schema

SMALL = [
    "dataset.layout=voc",
    "dataset.limit=48",
    "proposals.count=100",
    "hcp.image_epochs=4",
    "hcp.hypothesis_epochs=2",
    "segmentation.epochs=3",
    "segmentation.networks=[AN_A, SN_B]",
]
TABLES = (IMAGES, PROPOSALS, SCORES, REFINED, SUPERVISION, PREDICTIONS)


def command(run: RunDirectory, settings: Sequence[str]) -> list[str]:
    words = [sys.executable, "-m", "wsseg_ray", "run", "demo", "--run-dir", run.root]
    return words + [word for setting in settings for word in ("--set", setting)]


def under_way(run: RunDirectory, stage: str) -> bool:
    """Whether a stage has finished something, but not all."""
    run = run.now()
    entry = run.results and run.entry(written(run, stage))
    if not entry or entry["state"] != "running":
        return False
    if stage == "train_hcp":
        return run.exists("hcp", "state.pt")
    if stage == "train_segmenter":
        return run.exists("segmenters", "AN_A", "state.pt")
    return bool(run.shards(written(run, stage)))


def written(run: RunDirectory, stage: str) -> str:
    """The folder that a stage of a run fills."""
    return next(one.writes for one in stages_of(open_run(run).recipe) if one.name == stage)


def kill_in(run: RunDirectory, settings: Sequence[str], stage: str) -> str:
    """Start or continue a run, kill its driver in a stage; what the stage had done by then."""
    with subprocess.Popen(command(run, settings), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
        while driver.poll() is None and not under_way(run, stage):
            time.sleep(0.02)
        if driver.poll() is not None:
            return "not killed: the run was over first"
        driver.send_signal(signal.SIGKILL)
    run = run.now()
    if stage.startswith("train"):
        return "after its first epoch"
    return f"{len(run.shards(written(run, stage)))} of {len(run.shards('images')) // 2} shards written"


def differences(a: RunDirectory, b: RunDirectory, table: Table[Any]) -> tuple[int, int]:
    """Rows, and rows that are missing, twice there or unlike."""
    left, right = list(a.rows(table)), list(b.rows(table))
    found = {row.image_id: row for row in right}
    unlike = len(right) - len(found) + sum(row.image_id not in found for row in left)
    columns = schema(table.row).names
    for row in left:
        other = found.get(row.image_id)
        unlike += other is not None and not all(
            np.array_equal(getattr(row, column), getattr(other, column)) for column in columns
        )
    return len(left), unlike


def tables_compared(a: RunDirectory, b: RunDirectory) -> dict[str, tuple[int, int]]:
    """`differences` of each table; prints a line for each."""
    found = {table.folder: differences(a, b, table) for table in TABLES}
    for name, (rows, unlike) in found.items():
        print(f"{name:<12} {rows:4d} rows, {unlike} missing, double or unlike", flush=True)
    return found


def same_weights(a: RunDirectory, b: RunDirectory, place: tuple[str, ...]) -> bool:
    """Whether two runs trained the same network, bit for bit."""
    left, right = (torch.load(io.BytesIO(run.read_bytes(*place, "network.pt")), weights_only=True) for run in (a, b))
    return all(torch.equal(left[key], right[key]) for key in left)


def weights_compared(a: RunDirectory, b: RunDirectory) -> dict[str, bool]:
    """`same_weights` of each network of the recipe; prints a line for each."""
    recipe = open_run(a).recipe
    places = [("hcp",), *((segmenters.last_folder(recipe, n), n.name) for n in segmenters.networks(recipe))]
    found = {"/".join(place): same_weights(a, b, place) for place in places}
    for name, equal in found.items():
        print(f"{name:<28} weights {'equal' if equal else 'UNLIKE'}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        demo.draw(Path(folder) / "photos", 0, None)
        settings = [*SMALL, f"dataset.root={folder}/photos", *arguments.settings]
        whole, killed = (RunDirectory.at(f"{folder}/{name}") for name in ("whole", "killed"))
        subprocess.run(command(whole, settings), check=True)
        kills = {}
        for stage in ("proposals", "train_hcp", "score", "train_segmenter", "predict"):
            kills[stage] = kill_in(killed, settings, stage)
            print(f"killed in {stage}: {kills[stage]}", flush=True)
        subprocess.run(command(killed, settings), check=True)
        whole, killed = whole.now(), killed.now()
        tables, weights = tables_compared(whole, killed), weights_compared(whole, killed)
        print(json.dumps({"kills": kills, "tables": tables, "weights_equal": weights}))


if __name__ == "__main__":
    main()
