"""Estimates for a run of many photos from runs of few photos: hours, machine-hours, storage, machines to add first.

Three small runs of the user's photos give each stage's costs: seconds = fixed + seconds per shard x shards + seconds
per photo x photos. Few photos are in small shards, so without the middle term the estimate for many photos would be too
long. Three runs separate the last two terms badly, so a photo costs at least the time that actors or trainers computed
for it. Trainings read shards in advance, so they have no middle term. The costs are multiplied by the number of photos
and divided among the machines. `cautions` lists what the estimate does not include.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from wsseg_ray import pipeline
from wsseg_ray.engine import resources
from wsseg_ray.engine.stage import Stage
from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import Recipe
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, shard_size

NODE_CPUS = 16  # a training without GPUs computes on one machine
DRIVER_BYTES = 1.2e9  # of Ray, torch and the package (benchmarks/many.py)
DRIVER_BYTES_A_PHOTO = 60  # of the index of a training and the order of an epoch (benchmarks/metadata.py)
REQUESTS_A_SHARD = 10  # of a table: what a task reads and writes (benchmarks/store.py)
REQUESTS_A_PHOTO = 4  # it is opened by two stages, with two requests each (the same)
CPUS_STEP = 16  # number of added CPUs that is compared with one more GPU


@dataclass(frozen=True)
class Cost:
    """The costs of a stage on the machine where it was measured.

    Arguments:
        fixed: seconds that do not depend on the number of photos.
        a_shard: seconds per shard, for all workers together.
        seconds: per unit of work, for all workers together.
        work: units per photo of its split: 1; for trainings, the times that the photo is used over all epochs.
        power: 2 if every photo is compared with every other photo, otherwise 1.
        bytes: in the run directory, per photo of its split.
        workers: CPUs, GPUs or Train workers that it ran on.
        cpus_per_gpu: CPUs whose tasks keep one GPU busy; 0: not known, or the stage has no actors.
        pixels: of the largest photo, since large photos make small shards; 0: not known.
    """

    fixed: float
    a_shard: float
    seconds: float
    work: float
    power: int
    bytes: float
    workers: float
    cpus_per_gpu: float = 0.0
    pixels: int = 0


class Machines(NamedTuple):
    cpus: float
    gpus: float


class Measured(NamedTuple):
    """Measurements of one stage of a run.

    Arguments:
        seconds: from its start to its end.
        busy: seconds that its actors or trainers computed; 0 if it has none.
        work: units.
        photos: of its split.
        bytes: of its table.
        task: seconds that its tasks worked.
        pixels: of the largest photo; 0: not known.
    """

    seconds: float
    busy: float
    work: int
    photos: int
    bytes: int
    task: float = 0.0
    pixels: int = 0


def measure(recipe: Recipe, sample: int, there: Machines | None = None) -> tuple[dict[str, Cost], Machines, int]:
    """Run a recipe on `sample` photos per split, a quarter and a sixteenth of them, in a temporary folder.

    Returns the cost of every stage, the machines that it was measured on, and the total number of val photos.
    Raises RecipeError where the data set has too few photos; after the smallest run, where it ran on a GPU and the
    planned machines `there` have none: a CPU would be taken for a GPU. None: they are like the measured ones.
    """
    with tempfile.TemporaryDirectory(prefix="wsseg-plan-") as folder:
        stages = pipeline.stages_of(recipe)
        everything = pipeline.prepare(recipe, RunDirectory.at(f"{folder}/all"), stages).listing.photos
        count = Counter(photo.split for photo in everything)
        if count["train"] < sample:
            raise RecipeError(f"--sample {sample}: the data set has {count['train']} training photos")
        runs, sizes = [], (sample // 16, sample // 4, sample)
        for size in sizes:
            limited = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"limit": size})})
            pipeline.run(limited, f"{folder}/{size}")
            run = RunDirectory.at(f"{folder}/{size}").now()
            runs.append({stage.name: _entry(run, stage) for stage in stages})
            cluster = run.read_json("status.json")["cluster"]
            here = Machines(cluster["CPU"], cluster["GPU"] if recipe.runtime.use_gpu else 0)
            if there and here.gpus and not there.gpus:
                raise RecipeError(
                    "stages with a network are measured on a GPU, and the cluster has none; plan with --gpus, or "
                    "measure without: --set runtime.use_gpu=false"
                )
    costs = {}
    for stage in stages:
        own, by_shard = [run[stage.name] for run in runs], stage.workers(recipe) != "trainers"
        power = 2 if stage.pairs(recipe) else 1
        cost = fit(own, power, workers(recipe, stage, here), by_shard)
        has_actors = bool(here.gpus) and stage.workers(recipe) == "actors"
        costs[stage.name] = replace(cost, cpus_per_gpu=feeders(own[-1]) if has_actors else 0.0)
    return costs, here, count["val"]


def feeders(run: Measured) -> float:
    """CPUs whose tasks make as much as one actor takes: the seconds of tasks per second of actors."""
    return run.task / run.busy if run.busy else 0.0


def _entry(run: RunDirectory, stage: Stage) -> Measured:
    entry = run.entry(stage.writes)
    assert entry is not None  # the run is over
    photos = sum(stage.split in ("all", row.split) for row in run.rows(IMAGES, ["split"]))
    sizes = run.sizes(stage.writes)
    size, pixels = sum(sizes.values()), resources.largest_photo(run)
    return Measured(entry["seconds"], entry["busy"], entry["worked"], photos, size, entry["task"], pixels)


def _planned(recipe: Recipe, costs: dict[str, Cost]) -> list[Stage]:
    """The stages whose costs are known, in order."""
    return [stage for stage in pipeline.stages_of(recipe) if stage.name in costs]


def _photos(stage: Stage, photos: dict[str, int]) -> int:
    """The number of photos of a stage.

    `score` also processes the val photos, each as one region; their cost is counted in the cost of a training photo.
    """
    return sum(photos.values()) if stage.split == "all" else photos[stage.split]


def fit(runs: list[Measured], power: int, workers: float, by_shard: bool = True) -> Cost:
    """The costs that fit runs of several sizes best, by relative error; none of a stage that has no photos.

    A stage that did nothing with its photos, such as a training of no epoch, costs what it takes to begin.

    No cost is negative, and a unit of work costs at least its computed time in the last run.
    """
    if not runs[-1].photos:
        return Cost(0, 0, 0, 0, power, 0, workers)
    if not runs[-1].work:
        return Cost(runs[-1].seconds, 0, 0, 0, power, runs[-1].bytes / runs[-1].photos, workers)
    units = np.array([run.work * run.photos ** (power - 1) for run in runs], float)
    rows = np.stack([np.ones(len(runs)), units, [_shards(run.photos, run.pixels) * by_shard for run in runs]], axis=1)
    taken = np.array([run.seconds for run in runs])
    scale = rows.max(axis=0).clip(min=1)
    last = runs[-1]
    least = last.busy / units[-1]
    (fixed, more, a_shard), _ = nnls(rows / scale / taken[:, None], 1 - least * units / taken)
    fixed, each, a_shard = np.array([fixed, more, a_shard]) / scale + [0, least, 0]
    work, size = last.work / last.photos, last.bytes / last.photos
    return Cost(fixed, a_shard, each, work, power, size, workers, pixels=last.pixels)


def _shards(photos: int, pixels: int) -> int:
    return math.ceil(photos / shard_size(photos, pixels))


def workers(recipe: Recipe, stage: Stage, machines: Machines) -> float:
    """The number of CPUs or GPUs of a stage."""
    if stage.workers(recipe) == "trainers":
        most = max(1, stage.batch_size(recipe) // 2)
        return min(machines.gpus, most) if machines.gpus else min(machines.cpus, NODE_CPUS)
    return machines.gpus if machines.gpus and stage.has_network(recipe) else machines.cpus


def seconds(recipe: Recipe, costs: dict[str, Cost], photos: dict[str, int], machines: Machines) -> dict[str, float]:
    """Seconds of every stage.

    Arguments:
        photos: of `train` and `val`.
    """
    found = {}
    for stage in _planned(recipe, costs):
        cost, count = costs[stage.name], _photos(stage, photos)
        shared = cost.workers / workers(recipe, stage, machines)
        found[stage.name] = cost.fixed + shared * (
            cost.a_shard * _shards(count, cost.pixels) + cost.seconds * cost.work * count**cost.power
        )
    return found


def bytes_of(recipe: Recipe, costs: dict[str, Cost], photos: dict[str, int]) -> float:
    """Bytes of the run directory. A checkpoint does not grow with the photos, so trainings are left out."""
    mapped = [stage for stage in _planned(recipe, costs) if stage.workers(recipe) != "trainers"]
    return sum(costs[stage.name].bytes * _photos(stage, photos) for stage in mapped)


def shards_of(recipe: Recipe, costs: dict[str, Cost], photos: dict[str, int]) -> int:
    """Shards of all tables: each is a file."""
    mapped = [stage for stage in _planned(recipe, costs) if stage.workers(recipe) != "trainers"]
    return sum(_shards(_photos(stage, photos), costs[stage.name].pixels) for stage in mapped)


def driver_bytes(photos: dict[str, int]) -> float:
    """Memory of the driver: what it imports, and what it knows of each photo while a training begins."""
    return DRIVER_BYTES + DRIVER_BYTES_A_PHOTO * sum(photos.values())


def gains(recipe: Recipe, costs: dict[str, Cost], photos: dict[str, int], machines: Machines) -> dict[str, float]:
    """The share of time saved by one more GPU (if the cluster has GPUs) and by CPUS_STEP more CPUs."""
    now = sum(seconds(recipe, costs, photos, machines).values())
    more = {f"{CPUS_STEP} more CPUs": machines._replace(cpus=machines.cpus + CPUS_STEP)}
    if machines.gpus:
        more["one more GPU"] = machines._replace(gpus=machines.gpus + 1)
    return {name: 1 - sum(seconds(recipe, costs, photos, then).values()) / now for name, then in more.items()}


def cautions(recipe: Recipe, here: Machines, there: Machines) -> list[str]:
    """Limits of the plan, for the user."""
    found = []
    if there.gpus and not here.gpus:
        found.append("no GPU was measured, so networks are planned on CPUs; plan again on a machine with a GPU")
    return found + [caution for stage in pipeline.stages_of(recipe) for caution in stage.cautions(recipe)]


def estimate(recipe: Recipe, costs: dict[str, Cost], photos: dict[str, int], machines: Machines) -> dict[str, Any]:
    """The plan as plain data.

    Returns `stages`, each with `stage`, `seconds`, `machines` and their `kind`; `seconds` of all; `machine_hours` by
    kind; `bytes` and `files` of the run directory (a file per shard of each table, a PNG per val photo and network),
    and `requests` to an object store; `driver_bytes`; the `longest` stage; of `gains` the one `to_add_first`; and
    `cpus_per_gpu` of each stage with actors, where a GPU was measured.
    """
    found = seconds(recipe, costs, photos, machines)
    stages, hours = [], {"CPU": 0.0, "GPU": 0.0}
    for stage in _planned(recipe, costs):
        own, count = found[stage.name], workers(recipe, stage, machines)
        kind = "GPU" if machines.gpus and stage.has_network(recipe) else "CPU"
        hours[kind] += own / 3600 * count
        stages.append({"stage": stage.name, "seconds": own, "machines": count, "kind": kind})
    best = gains(recipe, costs, photos, machines)
    fed = {name: cost.cpus_per_gpu for name, cost in costs.items() if machines.gpus and cost.cpus_per_gpu}
    shards, pictures = shards_of(recipe, costs, photos), photos["val"] * len(recipe.segmentation.networks)
    return {
        "stages": stages,
        "seconds": sum(found.values()),
        "machine_hours": {kind: amount for kind, amount in hours.items() if amount},
        "bytes": bytes_of(recipe, costs, photos),
        "files": shards + pictures,
        "requests": REQUESTS_A_SHARD * shards + REQUESTS_A_PHOTO * sum(photos.values()) + pictures,
        "driver_bytes": driver_bytes(photos),
        "longest": max(found, key=lambda name: found[name]),
        "to_add_first": max(best, key=lambda name: best[name]),
        "gains": best,
        "cpus_per_gpu": fed,
    }


def table(plan: dict[str, Any]) -> list[str]:
    """An `estimate` as lines of text."""
    total = plan["seconds"]
    lines = [f"{'stage':<16} {'hours':>9} {'share':>6} {'machines':>10}"]
    for row in plan["stages"]:
        own, there = row["seconds"], f"{row['machines']:g} {row['kind']}s"
        lines.append(f"{row['stage']:<16} {own / 3600:9.2f} {own / total:6.0%} {there:>10}")
    lines.append(f"{'all':<16} {total / 3600:9.2f}")
    used = ", ".join(f"{amount:.1f} {kind}-hours" for kind, amount in plan["machine_hours"].items())
    lines.append(f"machine-hours: {used}; storage: {plan['bytes'] / 1e9:.2f} GB")
    driver = f"the driver needs {plan['driver_bytes'] / 1e9:.1f} GB of memory"
    lines.append(f"files: {plan['files']:,}; requests to an object store: {plan['requests']:,.0f}; {driver}")
    if plan["cpus_per_gpu"]:
        fed = ", ".join(f"{name} {math.ceil(count)}" for name, count in plan["cpus_per_gpu"].items())
        lines.append(f"CPUs that keep one GPU busy: {fed}")
    lines.append(f"longest stage: {plan['longest']}")
    every = ", ".join(f"{name} -{gain:.0%}" for name, gain in plan["gains"].items())
    lines.append(f"to add first: {plan['to_add_first']}: {every}")
    return lines
