"""What does Ray cost? The whole demo on Ray, and without it in one process (`runtime.engine=local`), stage by stage.

    python -m benchmarks.overhead [--set key=value]...

Both are `wsseg run demo` on the same photos, each in a process of its own, one after the other. Without Ray the stages
read, compute and write shard after shard; actors and trainers compute with as many threads as there are cores.

Prints seconds per stage, those without Ray over Ray's (above 1: Ray is faster, for it uses the other cores), whether
the tables and the weights are equal, and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.kills import command, tables_compared, weights_compared
from wsseg_ray.datasets import demo
from wsseg_ray.storage import RunDirectory


def timed(run: RunDirectory, settings: Sequence[str]) -> dict[str, float]:
    """Run the demo; seconds of each stage, of the rest (start, listing, report, end), and of all."""
    begin = time.perf_counter()
    subprocess.run(command(run, settings), check=True, env={**os.environ, "RAY_ADDRESS": "local"})
    whole = time.perf_counter() - begin
    run = run.now()
    seconds = {name: run.entry(folder)["seconds"] for name, folder in run.read_json("run.json")["stages"].items()}
    return {**seconds, "start, report": whole - sum(seconds.values()), "all": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        demo.draw(Path(folder) / "photos", 0, None)
        settings = ["dataset.layout=voc", f"dataset.root={folder}/photos", *arguments.settings]
        runs = {engine: RunDirectory.at(f"{folder}/{engine}") for engine in ("local", "ray")}
        seconds = {engine: timed(run, [*settings, f"runtime.engine={engine}"]) for engine, run in runs.items()}
        print(f"{'stage':<16} {'local s':>8} {'Ray s':>8} {'local / Ray':>11}")
        for stage, alone in seconds["local"].items():
            print(f"{stage:<16} {alone:8.1f} {seconds['ray'][stage]:8.1f} {alone / seconds['ray'][stage]:11.2f}")
        found = [run.now() for run in runs.values()]
        tables, weights = tables_compared(*found), weights_compared(*found)
    print(json.dumps({"seconds": seconds, "tables": tables, "weights_equal": weights}))


if __name__ == "__main__":
    main()
