"""What a run of many photos will take, from runs of a few of them: hours, machine-hours, storage, what to add first.

Three small runs of the user's own photos give each stage its costs: seconds = fixed + seconds a shard x shards +
seconds a photo x photos. Few photos lie in small shards, so without the middle term many photos would be planned too
dear; and as so few runs tell the two last terms apart badly, a photo costs no less than what actors or trainers were
seen to compute for it. Trainings read shards ahead, so they have no middle term. What grows is carried to more photos
and shared out over more machines. `cautions` says what this leaves out.
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
from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import TRAINING_STAGES, Recipe
from wsseg_ray.stages.resources import has_network
from wsseg_ray.tables import RunDirectory, shard_size

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
        everything = pipeline.prepare(recipe, RunDirectory.at(f"{folder}/all")).listing.photos
        count = {split: sum(photo.split == split for photo in everything) for split in ("train", "val")}
        if count["train"] < sample:
            raise RecipeError(f"--sample {sample}: the data set has {count['train']} training photos")
        runs, sizes = [], (sample // 16, sample // 4, sample)
        for size in sizes:
            limited = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"limit": size})})
            run = RunDirectory.at(f"{folder}/{size}")
            pipeline.run(limited, run.root)
            runs.append({name: _entry(run, name) for name in pipeline.STAGES})
            cluster = run.read_json("status.json")["cluster"]
    here = Machines(cluster["CPU"], cluster["GPU"])
    pairwise = recipe.refinement.engine == "faiss" or recipe.refinement.metric != "squared_l2"
    costs = {}
    for name in pipeline.STAGES:
        power = 2 if name == "refine" and pairwise else 1
        own = [run[name] for run in runs]
        costs[name] = fit(own, power, workers(recipe, name, here), by_shard=name not in TRAINING_STAGES)
    return costs, here, count["val"]


def _entry(run: RunDirectory, name: str) -> Measured:
    entry = run.read_json("stages", f"{name}.json")
    photos = sum(name == "images" or row["split"] == _split(name) for row in run.rows("images", ["split"]))
    folder = Path(run.root, pipeline.STAGES[name].folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Measured(entry["seconds"], entry["busy"], entry["worked"], photos, size)


def _split(stage: str) -> str:
    """Whose photos a stage works on; `images` looks at both.

    `score` also passes the val photos, each as one region; they are counted as part of what a training photo costs.
    """
    return "val" if stage == "predict" else "train"


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


def workers(recipe: Recipe, stage: str, machines: Machines) -> float:
    """On how many CPUs or GPUs a stage computes."""
    if stage in TRAINING_STAGES:
        batch = (recipe.hcp if stage == "train_hcp" else recipe.segmentation).batch_size
        return min(machines.gpus, max(1, batch // 2)) if machines.gpus else min(machines.cpus, NODE_CPUS)
    return machines.gpus if machines.gpus and has_network(recipe, stage) else machines.cpus


def seconds(recipe: Recipe, costs: dict[str, Cost], photos: dict[str, int], machines: Machines) -> dict[str, float]:
    """Seconds of every stage.

    Arguments:
        photos: of `train` and `val`.
    """
    found = {}
    for name, cost in costs.items():
        count = sum(photos.values()) if name == "images" else photos[_split(name)]
        shared = cost.workers / workers(recipe, name, machines)
        found[name] = cost.fixed + shared * (
            cost.a_shard * _shards(count) + cost.seconds * cost.work * count**cost.power
        )
    return found


def bytes_of(costs: dict[str, Cost], photos: dict[str, int]) -> float:
    """Bytes of the run directory. A checkpoint does not grow with the photos, so trainings are left out."""
    return sum(
        cost.bytes * (sum(photos.values()) if name == "images" else photos[_split(name)])
        for name, cost in costs.items()
        if name not in TRAINING_STAGES
    )


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
    for name, section in (("hcp", recipe.hcp), ("segmentation", recipe.segmentation)):
        if section.freeze == "all":
            found.append(
                f"{name}.freeze=all keeps the features of photos in 1 to 2 GB of a worker's memory: "
                "of more photos than fit they are computed in every epoch, which takes longer than planned"
            )
    return found


def table(recipe: Recipe, costs: dict[str, Cost], photos: dict[str, int], machines: Machines) -> list[str]:
    """The plan as lines of text."""
    found = seconds(recipe, costs, photos, machines)
    total = sum(found.values())
    lines = [f"{'stage':<16} {'hours':>9} {'share':>6} {'machines':>10}"]
    hours = {"CPU": 0.0, "GPU": 0.0}
    for name, own in found.items():
        count = workers(recipe, name, machines)
        kind = "GPU" if machines.gpus and has_network(recipe, name) else "CPU"
        hours[kind] += own / 3600 * count
        lines.append(f"{name:<16} {own / 3600:9.2f} {own / total:6.0%} {f'{count:g} {kind}s':>10}")
    lines.append(f"{'all':<16} {total / 3600:9.2f}")
    used = ", ".join(f"{amount:.1f} {kind}-hours" for kind, amount in hours.items() if amount)
    lines.append(f"machine-hours: {used}; storage: {bytes_of(costs, photos) / 1e9:.2f} GB")
    lines.append(f"widest stage: {max(found, key=found.get)}")
    best = gains(recipe, costs, photos, machines)
    first = max(best, key=best.get)
    lines.append(f"to add first: {first}: " + ", ".join(f"{name} -{gain:.0%}" for name, gain in best.items()))
    return lines
