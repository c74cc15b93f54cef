"""Kill -9 the driver in five stages of one run; are the tables those of an undisturbed run, row for row?

    python benchmarks/kills.py [--set key=value]...

Prints one line a kill, one a table, and a JSON line. Takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from wsseg_ray.datasets import demo
from wsseg_ray.tables import SCHEMAS, RunDirectory

SMALL = [
    "dataset.layout=voc",
    "dataset.limit=48",
    "proposals.count=100",
    "hcp.image_epochs=4",
    "hcp.hypothesis_epochs=2",
    "segmentation.epochs=3",
    "segmentation.networks=[AN_A, SN_B]",
]


def command(run: RunDirectory, settings: list[str]) -> list[str]:
    words = [sys.executable, "-m", "wsseg_ray", "run", "demo", "--run-dir", run.root]
    return words + [word for setting in settings for word in ("--set", setting)]


def under_way(run: RunDirectory, stage: str) -> bool:
    """Whether a stage has finished something, but not all."""
    entry = run.read_json("stages", f"{stage}.json")
    if not entry or entry["state"] != "running":
        return False
    if stage == "train_hcp":
        return run.exists("hcp", "state.pt")
    if stage == "train_segmenter":
        return run.exists("segmenters", "AN_A", "state.pt")
    return bool(run.shards({"score": "scores", "supervise": "supervision", "predict": "predictions"}.get(stage, stage)))


def kill_in(run: RunDirectory, settings: list[str], stage: str) -> str:
    """Start or continue a run, kill its driver in a stage; what the stage had done by then."""
    with subprocess.Popen(command(run, settings), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
        while driver.poll() is None and not under_way(run, stage):
            time.sleep(0.02)
        if driver.poll() is not None:
            return "not killed: the run was over first"
        driver.send_signal(signal.SIGKILL)
    if stage.startswith("train"):
        return "after its first epoch"
    table = {"score": "scores", "predict": "predictions"}.get(stage, stage)
    return f"{len(run.shards(table))} of {len(run.shards('images')) // 2} shards written"


def differences(a: RunDirectory, b: RunDirectory, table: str) -> tuple[int, int]:
    """Rows, and rows that are missing, twice there or unlike."""
    left, right = list(a.rows(table)), list(b.rows(table))
    found = {row["image_id"]: row for row in right}
    unlike = len(right) - len(found) + sum(row["image_id"] not in found for row in left)
    for row in left:
        other = found.get(row["image_id"])
        unlike += other is not None and not all(np.array_equal(row[name], other[name]) for name in SCHEMAS[table].names)
    return len(left), unlike


def same_weights(a: RunDirectory, b: RunDirectory, place: tuple[str, ...]) -> bool:
    """Whether two runs trained the same network, bit for bit."""
    left, right = (torch.load(io.BytesIO(run.read_bytes(*place, "network.pt")), weights_only=True) for run in (a, b))
    return all(torch.equal(left[key], right[key]) for key in left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    with tempfile.TemporaryDirectory() as folder:
        demo.draw(Path(folder) / "photos", 0, None)
        settings = [*SMALL, f"dataset.root={folder}/photos", *parser.parse_args().settings]
        whole, killed = (RunDirectory.at(f"{folder}/{name}") for name in ("whole", "killed"))
        subprocess.run(command(whole, settings), check=True, env=os.environ)
        kills = {}
        for stage in ("proposals", "train_hcp", "score", "train_segmenter", "predict"):
            kills[stage] = kill_in(killed, settings, stage)
            print(f"killed in {stage}: {kills[stage]}", flush=True)
        subprocess.run(command(killed, settings), check=True, env=os.environ)
        tables = {table: differences(whole, killed, table) for table in SCHEMAS}
        for table, (rows, unlike) in tables.items():
            print(f"{table:<12} {rows:4d} rows, {unlike} missing, double or unlike")
        networks = [
            ("hcp",),
            *(("segmenters", name) for name in whole.names("segmenters") if not name.endswith(".json")),
        ]
        weights = {}
        for place in networks:
            weights["/".join(place)] = same_weights(whole, killed, place)
            print(f"{'/'.join(place):<28} weights {'equal' if weights['/'.join(place)] else 'UNLIKE'}")
        print(json.dumps({"kills": kills, "tables": tables, "weights_equal": weights}))


if __name__ == "__main__":
    main()
