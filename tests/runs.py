"""What tests do with whole runs: copy, compare, take back, kill."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from wsseg_ray import pipeline
from wsseg_ray.datasets import Listing
from wsseg_ray.engine.stage import Job, open_run
from wsseg_ray.engine.training import Index
from wsseg_ray.recipe import AUTO, Recipe, load, validate
from wsseg_ray.storage import ENTRY, RunDirectory
from wsseg_ray.tables import IMAGES, PREDICTIONS, PROPOSALS, REFINED, SCORES, SUPERVISION, Row, Table, schema

TABLES = (IMAGES, PROPOSALS, SCORES, REFINED, SUPERVISION, PREDICTIONS)


def empty_job(place: Path, *settings: str, classes: Sequence[str] = ("x",)) -> Job:
    """A run with nothing in it, of the demo's recipe, without Ray."""
    values = list(range(1, len(classes) + 1))
    recipe = load("demo", ["runtime.engine=local", *settings])
    return Job(RunDirectory.at(str(place)), recipe, Listing([*classes], values, []))


def copy(run: RunDirectory, folder: Path) -> RunDirectory:
    """A copy of a run, to change it."""
    shutil.copytree(run.root, folder / "run")
    return RunDirectory.at(str(folder / "run")).now()


def ran(recipe: Recipe, run: RunDirectory, until: str | None = None) -> RunDirectory:
    """Run a recipe in a run directory; the directory with its results."""
    pipeline.run(recipe, run.root, until)
    return run.now()


def photos_of(settings: Sequence[str]) -> tuple[dict[str, bytes], list[str]]:
    """The files of a data set on disk, by their paths in it, and the other settings."""
    root = next(Path(setting.partition("=")[2]) for setting in settings if setting.startswith("dataset.root="))
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return files, [setting for setting in settings if not setting.startswith("dataset.root=")]


def by_name(run: RunDirectory, table: Table[Any]) -> dict[str, Any]:
    """The rows of a table, by image_id."""
    return {row.image_id: row for row in run.rows(table)}


def equal(one: Row, other: Row) -> bool:
    """Every value of a row but the paths, which hold the run directory's own."""
    names = [name for name in schema(type(one)).names if not name.endswith("uri")]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def same_rows(a: RunDirectory, b: RunDirectory, table: Table[Any]) -> bool:
    left, right = by_name(a, table), by_name(b, table)
    return left.keys() == right.keys() and all(equal(left[i], right[i]) for i in left)


def weights(run: RunDirectory, *place: str) -> dict[str, Any]:
    """A file of tensors."""
    return torch.load(io.BytesIO(run.read_bytes(*place)), weights_only=True)


def same_weights(a: RunDirectory, b: RunDirectory, *place: str) -> bool:
    """Bit for bit."""
    left, right = weights(a, *place), weights(b, *place)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def files(run: RunDirectory, *folder: str) -> list[str]:
    """Names in a folder of a result, without what its stage says of it."""
    return [name for name in run.names(*folder) if name not in (ENTRY, pipeline.FAILED)]


def entries(run: RunDirectory) -> dict[str, Any]:
    """What each stage of a run left of itself."""
    stages = pipeline.stages_of(open_run(run).recipe)
    own = run.now()
    return {stage.name: own.entry(stage.writes) for stage in stages}


def measured(run: RunDirectory) -> dict[str, Any]:
    """The metrics of a run without what is a time."""
    metrics = run.read_json("metrics.json")
    del metrics["stages"]
    for network in metrics.get("networks", {}).values():
        for entry in network["log"]:
            del entry["seconds"], entry["waited"]
    return metrics


def cut_off(run: RunDirectory, stage: str, *files: str) -> None:
    """Take back a stage as a kill leaves it: without some of its files, and without its end mark."""
    for file in files:
        run.delete(*file.split("/"))
    folder = run.read_json("run.json")["stages"][stage]
    run.write_entry((run.entry(folder) or {}) | {"state": "running"}, folder)


def kill_driver(
    run: RunDirectory,
    settings: list[str],
    until: str,
    reached: Callable[[], object],
) -> None:
    """Start the demo as a process of its own, and kill it when it has come so far."""
    command = [sys.executable, "-m", "wsseg_ray", "run", "demo", "--run-dir", run.root, "--until", until]
    command += [word for override in settings for word in ("--set", override)]
    with subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": "local"}, stderr=subprocess.DEVNULL) as driver:
        while not reached():
            with suppress(subprocess.TimeoutExpired):  # a loop that never waits would take a core from the run
                raise AssertionError(f"the run ended by itself, with exit code {driver.wait(0.1)}")
        driver.kill()


def settled(name: str) -> Recipe:
    """A shipped recipe as it is on a machine without a GPU; nothing is looked for."""
    lite = "timm:tf_efficientnet_lite2*1,1.5"
    chosen = {
        "dataset": {"layout": "voc", "train_split": "train_aug", "max_side": 400},
        "hcp": {
            "backbone": lite,
            "image_epochs": 15,
            "hypothesis_epochs": 15,
            "region_epochs": 4,
            "decay_every": 10,
        },
        "segmentation": {"backbone": lite, "epochs": 15, "rounds": 1},
    }
    data = load(name).model_dump()
    for section, keys in chosen.items():
        data[section] |= {key: value for key, value in keys.items() if data[section][key] == AUTO}
    return validate(data)


def index_of(shards: Sequence[tuple[str, Sequence[str]]]) -> Index:
    """The index of photos with one label and no mask, shard by shard."""
    names = [name for _, own in shards for name in own]
    starts = np.cumsum([0, *(len(own) for _, own in shards)])
    ones = np.ones(len(names), np.uint8)
    return Index([shard for shard, _ in shards], starts, pa.array(names, pa.string()), ones, ones == 0)
