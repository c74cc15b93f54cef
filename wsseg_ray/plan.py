"""What a run of many photos will take, from runs of a few of them: hours, machine-hours, storage, what to add first.

Three small runs of the user's own photos give each stage its costs: seconds = fixed + seconds per shard x shards +
seconds per photo x photos. Few photos lie in small shards, so without the middle term the plan for many photos would be
too long. Three runs tell the last two terms apart badly, so a photo costs no less than what actors or trainers computed
for it. Trainings read shards ahead, so they have no middle term. The cost of a few photos is multiplied up to many, and
shared out over more machines. `cautions` says what this leaves out.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from wsseg_ray import pipeline
from wsseg_ray.engine.stage import Stage
from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import Recipe
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, shard_size

NODE_CPUS = 16  # a training without GPUs computes on one machine
CPUS_STEP = 16  # what "more CPUs" means, beside one more GPU


@dataclass(frozen=True)
class Cost:
    """What a stage takes on the machine that it was measured on.

    Arguments:
        fixed: seconds, whatever the number of photos.
        a_shard: seconds for each shard, of all workers together.
        seconds: for each unit of work, of all workers together.
        work: units for each photo of its split: 1, or of trainings the photos seen over all epochs.
        power: 2 where every photo meets every other one.
        bytes: of the run directory, for each photo of its split.
        workers: that it ran on: CPUs, GPUs or Train workers.
    """

    fixed: float
    a_shard: float
    seconds: float
    work: float
    power: int
    bytes: float
    workers: float


class Machines(NamedTuple):
    cpus: float
    gpus: float


class Measured(NamedTuple):
    """What a stage of a run took.

    Arguments:
        seconds: from its start to its end.
        busy: of them, what its actors or trainers computed; 0 where it has none.
        work: units.
        photos: of its split.
        bytes: of its table.
    """

    seconds: float
    busy: float
    work: int
    photos: int
    bytes: int


def measure(recipe: Recipe, sample: int) -> tuple[dict[str, Cost], Machines, int]:
    """Run a recipe on `sample` photos a split, a quarter and a sixteenth of them, in a folder that is deleted again.

    Returns the cost of every stage, the machines that it was measured on, and how many val photos there are in all.
    Raises RecipeError where the data set has too few photos.
    """
    with tempfile.TemporaryDirectory(prefix="wsseg-plan-") as folder:
        stages = pipeline.stages_of(recipe)
        everything = pipeline.prepare(recipe, RunDirectory.at(f"{folder}/all"), stages).listing.photos
        count = {split: sum(photo.split == split for photo in everything) for split in ("train", "val")}
        if count["train"] < sample:
            raise RecipeError(f"--sample {sample}: the data set has {count['train']} training photos")
        runs, sizes = [], (sample // 16, sample // 4, sample)
        for size in sizes:
            limited = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"limit": size})})
            run = RunDirectory.at(f"{folder}/{size}")
            pipeline.run(limited, run.root)
            runs.append({stage.name: _entry(run, stage) for stage in stages})
            cluster = run.read_json("status.json")["cluster"]
    here = Machines(cluster["CPU"], cluster["GPU"])
    costs = {}
    for stage in stages:
        own, by_shard = [run[stage.name] for run in runs], stage.workers(recipe) != "trainers"
        power = 2 if stage.pairs(recipe) else 1
        costs[stage.name] = fit(own, power, workers(recipe, stage, here), by_shard)
    return costs, here, count["val"]


def _entry(run: RunDirectory, stage: Stage) -> Measured:
    entry = run.read_json("stages", f"{stage.name}.json")
    photos = sum(stage.split in ("all", row.split) for row in run.rows(IMAGES, ["split"]))
    folder = Path(run.root, stage.writes)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Measured(entry["seconds"], entry["busy"], entry["worked"], photos, size)


def _planned(recipe: Recipe, costs: dict[str, Cost]) -> list[Stage]:
    """The stages whose costs are known, in order."""
    return [stage for stage in pipeline.stages_of(recipe) if stage.name in costs]


def _photos(stage: Stage, photos: dict[str, int]) -> int:
    """How many photos a stage works on.

    `score` also passes the val photos, each as one region; they are counted as part of what a training photo costs.
    """
    return sum(photos.values()) if stage.split == "all" else photos[stage.split]


def fit(runs: list[Measured], power: int, workers: float, by_shard: bool = True) -> Cost:
    """The costs that explain runs of several sizes best, relative to what each took.

    None is negative, and a unit of work costs what it was computed for in the last run, or more.
    """
    units = np.array([run.work * run.photos ** (power - 1) for run in runs], float)
    rows = np.stack([np.ones(len(runs)), units, [_shards(run.photos) * by_shard for run in runs]], axis=1)
    taken = np.array([run.seconds for run in runs])
    scale = rows.max(axis=0).clip(min=1)
    last = runs[-1]
    least = last.busy / units[-1]
    (fixed, more, a_shard), _ = nnls(rows / scale / taken[:, None], 1 - least * units / taken)
    fixed, each, a_shard = np.array([fixed, more, a_shard]) / scale + [0, least, 0]
    return Cost(fixed, a_shard, each, last.work / last.photos, power, last.bytes / last.photos, workers)


def _shards(photos: int) -> int:
    return math.ceil(photos / shard_size(photos))


def workers(recipe: Recipe, stage: Stage, machines: Machines) -> float:
    """On how many CPUs or GPUs a stage computes."""
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
            cost.a_shard * _shards(count) + cost.seconds * cost.work * count**cost.power
        )
    return found


def bytes_of(recipe: Recipe, costs: dict[str, Cost], photos: dict[str, int]) -> float:
    """Bytes of the run directory. A checkpoint does not grow with the photos, so trainings are left out."""
    mapped = [stage for stage in _planned(recipe, costs) if stage.workers(recipe) != "trainers"]
    return sum(costs[stage.name].bytes * _photos(stage, photos) for stage in mapped)


def gains(recipe: Recipe, costs: dict[str, Cost], photos: dict[str, int], machines: Machines) -> dict[str, float]:
    """By which share the run gets shorter with one more GPU (where there is one) and with CPUS_STEP more CPUs."""
    now = sum(seconds(recipe, costs, photos, machines).values())
    more = {f"{CPUS_STEP} more CPUs": machines._replace(cpus=machines.cpus + CPUS_STEP)}
    if machines.gpus:
        more["one more GPU"] = machines._replace(gpus=machines.gpus + 1)
    return {name: 1 - sum(seconds(recipe, costs, photos, then).values()) / now for name, then in more.items()}


def cautions(recipe: Recipe, here: Machines, there: Machines) -> list[str]:
    """What the plan cannot know."""
    found = []
    if there.gpus and not here.gpus:
        found.append("no GPU was measured: stages with a network are planned on the CPUs; plan again where a GPU is")
    return found + [caution for stage in pipeline.stages_of(recipe) for caution in stage.cautions(recipe)]


def table(recipe: Recipe, costs: dict[str, Cost], photos: dict[str, int], machines: Machines) -> list[str]:
    """The plan as lines of text."""
    found = seconds(recipe, costs, photos, machines)
    total = sum(found.values())
    lines = [f"{'stage':<16} {'hours':>9} {'share':>6} {'machines':>10}"]
    hours = {"CPU": 0.0, "GPU": 0.0}
    for stage in _planned(recipe, costs):
        own, count = found[stage.name], workers(recipe, stage, machines)
        kind = "GPU" if machines.gpus and stage.has_network(recipe) else "CPU"
        hours[kind] += own / 3600 * count
        lines.append(f"{stage.name:<16} {own / 3600:9.2f} {own / total:6.0%} {f'{count:g} {kind}s':>10}")
    lines.append(f"{'all':<16} {total / 3600:9.2f}")
    used = ", ".join(f"{amount:.1f} {kind}-hours" for kind, amount in hours.items() if amount)
    lines.append(f"machine-hours: {used}; storage: {bytes_of(recipe, costs, photos) / 1e9:.2f} GB")
    lines.append(f"widest stage: {max(found, key=lambda name: found[name])}")
    best = gains(recipe, costs, photos, machines)
    first = max(best, key=lambda name: best[name])
    lines.append(f"to add first: {first}: " + ", ".join(f"{name} -{gain:.0%}" for name, gain in best.items()))
    return lines
