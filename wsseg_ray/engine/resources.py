"""What each stage asks of the cluster, and whether the cluster can ever give it. Imports no Ray.

A stage is a pool of tasks (`images`, `refine`, ...), a pool of actors that hold a network (`score`, `predict`, ...) or
a group of training workers. `runtime.stages.<name>` says how much each of them takes and how many there are. What it
leaves open is chosen here, from two cores to a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wsseg_ray.engine.stage import Stage
from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import Recipe, StageSection
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES

SMALL_NODE = 8  # CPUs; below it actors take half a CPU: two that ask for a whole one starve Ray Data on two cores
ACTOR_CPUS = 4  # of an actor without a GPU on a larger node: its torch threads
FEED_CPUS = 1  # of a task that feeds actors or trainers
GB = 1e9
HANDS = 16  # shards that a training shuffles together: bounds what a worker holds, and how many workers have work
BYTES_PER_PIXEL = 200  # of the largest photo: what a task needs for it at most, measured on proposals of 12 megapixels
LEAST_MEMORY = 0.5e9  # bytes; a worker that needs less asks for none
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml").expanduser()  # where `ray up` leaves it on the head
PIXELS_FILE = "pixels.json"  # in the table `images`: pixels of the largest of some photos


@dataclass(frozen=True)
class Node:
    """A kind of machine, and how many of it there are or may be."""

    cpus: float
    gpus: float
    memory: float  # bytes
    count: int = 1


@dataclass(frozen=True)
class Needs:
    """What a stage asks for: of each worker, and how many workers (`most` is None: as many tasks as fit)."""

    cpus: float
    gpus: float
    memory: float  # bytes; 0: not counted
    least: int
    most: int | None
    threads: int  # of a worker on CPUs: torch's, or of an actor the photos that it works on at once

    def options(self) -> dict[str, Any]:
        """As Ray's remote options."""
        found = {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory}
        return {name: value for name, value in found.items() if value or name == "num_cpus"}

    def bundle(self) -> dict[str, float]:
        """As one of Ray's resource bundles."""
        found = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: value for name, value in found.items() if value}


def node(resources: dict[str, float], count: int) -> Node:
    """A kind of machine from Ray's names of its resources."""
    cpus, gpus, memory = (float(resources.get(kind, 0)) for kind in ("CPU", "GPU", "memory"))
    return Node(cpus, gpus, memory, count)


def machines(recipe: Recipe) -> list[Node]:
    """The machines that the cluster may grow to, as far as that is known; none where it is not.

    It is known from `runtime.cluster`, or, on the head of a cluster that `ray up` made, from the file that it was made
    of.
    """
    if recipe.runtime.cluster:
        return [
            Node(kind.cpus, kind.gpus, (kind.memory_gb or math.inf) * GB, kind.count) for kind in recipe.runtime.cluster
        ]
    config = yaml.safe_load(BOOTSTRAP.read_text()) if BOOTSTRAP.is_file() else {}
    kinds = config.get("available_node_types", {}).values()
    return [node({"memory": math.inf, **kind["resources"]}, kind.get("max_workers", 0)) for kind in kinds]


def use_gpu(recipe: Recipe, nodes: Sequence[Node]) -> bool:
    """Whether actors and Train workers ask for a GPU: the recipe's word, or `auto`: whether there is or may be one."""
    wish = recipe.runtime.use_gpu
    return any(node.gpus > 0 for node in nodes) if wish == "auto" else wish


def asked(recipe: Recipe, stage: Stage) -> StageSection:
    """What the recipe says of a stage's resources.

    Raises RecipeError where it says something that this kind of stage does not have.
    """
    section = recipe.runtime.stages.get(stage.resources, StageSection())
    workers = stage.workers(recipe)
    foreign = {"tasks": ("gpus", "min_workers"), "actors": (), "trainers": ("batch_size",)}[workers]
    for key in foreign:
        if getattr(section, key) is not None and not (workers == "tasks" and stage.may_have_network):
            raise RecipeError(f"runtime.stages.{stage.resources}.{key}: a stage that runs on {workers} has none")
    return section


def needs(recipe: Recipe, stage: Stage, nodes: Sequence[Node], pixels: int = 0) -> Needs:
    """What a stage asks for: what its recipe says, else what suits the cluster.

    Tasks take a CPU. Actors and training workers take a GPU and a CPU each: as many actors as there are GPUs, as many
    trainers as leave each two photos of a batch. Without GPUs: on nodes under 8 CPUs one actor or trainer of half a
    CPU that computes on all of them; on larger ones actors of 4 CPUs on half the cluster, one trainer on half a node.
    An actor computes on as many photos at once as it has threads.

    A training whose number of workers was chosen here begins with those that there is room for, and goes on with fewer
    or more when machines go or come. Where the recipe says a number, it waits for that many.

    Where photos are large, memory is BYTES_PER_PIXEL of the largest one, at most half of a machine's: so a machine gets
    as many workers at once as it has room for.

    Arguments:
        nodes: of the cluster.
        pixels: of the largest photo; 0: not known.
    """
    section = asked(recipe, stage)
    memory = (section.memory_gb or 0) * GB or _memory(pixels, nodes)
    workers = stage.workers(recipe)
    if workers == "tasks":
        return Needs(section.cpus or 1, 0, memory, 1, section.max_workers, 1)
    trains = workers == "trainers"
    largest = max(nodes, key=lambda node: node.cpus)
    gpus = section.gpus if section.gpus is not None else float(use_gpu(recipe, nodes))
    cpus = section.cpus or (1 if gpus else _cpus(largest, trains))
    suiting = _gpu_workers(recipe, stage, nodes, gpus) if gpus else 1 if trains else _cpu_actors(nodes, cpus)
    wished = section.max_workers or recipe.runtime.num_workers
    most = wished or max(1, suiting)
    most = min(most, HANDS) if trains else most  # a trainer more would have no photo
    least = section.min_workers or (wished if trains else None) or 1
    threads = int(largest.cpus / most) if largest.cpus < SMALL_NODE else int(cpus)
    threads = threads if trains or not gpus else 1  # a GPU takes several photos in one batch
    return Needs(cpus, gpus, memory, min(least, most), max(least, most), max(1, threads))


def task_cpus(wanted: Needs, kinds: int, nodes: Sequence[Node]) -> float:
    """CPUs of a task that works beside the actors of a stage: so few that a task of each kind can always run.

    A task that reads keeps its CPU while it waits for a place for its output. With a whole CPU each on two cores,
    such a task would leave none for the task that writes: nothing would be written before everything was read. The
    smallest machine has room for an actor and a task of each kind, so the stage goes on when all others are lost.

    Arguments:
        wanted: what the actors ask for.
        kinds: how many kinds of tasks the stage has.
        nodes: of the cluster.
    """
    cpus = sum(node.cpus * node.count for node in nodes)
    most = (wanted.most or wanted.least) * wanted.cpus
    held = most if most < cpus else wanted.least * wanted.cpus
    left = min(node.cpus for node in nodes if node.cpus) - wanted.cpus
    return min(FEED_CPUS, (cpus - held) / kinds, left / kinds if left > 0 else FEED_CPUS)


def _memory(pixels: int, nodes: Sequence[Node]) -> float:
    """Bytes that a worker asks for where the recipe does not say.

    0 for photos of ordinary size, and where machines may come whose memory is not known: an autoscaler would not start
    them for it.
    """
    wanted, room = pixels * BYTES_PER_PIXEL, max(node.memory for node in nodes) / 2
    return 0.0 if wanted < LEAST_MEMORY or room == math.inf else float(int(min(wanted, room)))


def task_threads(nodes: Sequence[Node]) -> int:
    """Photos that a task beside actors works on at once: on a small node one such task of a kind runs, see `task_cpus`,
    and must be able to use every core that the others leave."""
    cpus = max(node.cpus for node in nodes)
    return max(1, int(cpus)) if cpus < SMALL_NODE else 1


def largest_photo(run: RunDirectory) -> int:
    """Pixels of a run's largest photo, as far as stage `images` looked; 0 before it ran."""
    return run.read_json(IMAGES.folder, PIXELS_FILE) or 0


def check_names(recipe: Recipe, known: Sequence[str]) -> None:
    """Raise RecipeError where the recipe gives resources to a stage that is not known."""
    for name in recipe.runtime.stages:
        if name not in known:
            raise RecipeError(f"runtime.stages.{name}: no such stage; there are {', '.join(known)}")


def _cpus(largest: Node, trains: bool) -> float:
    """CPUs of an actor or trainer without a GPU."""
    if largest.cpus < SMALL_NODE:
        return 0.5
    return largest.cpus // 2 if trains else ACTOR_CPUS


def _gpu_workers(recipe: Recipe, stage: Stage, nodes: Sequence[Node], gpus: float) -> int:
    """How many actors or trainers of so many GPUs suit the cluster."""
    fitting = int(sum(node.count * math.floor(node.gpus / gpus) for node in nodes))
    return min(fitting, stage.batch_size(recipe) // 2) if stage.workers(recipe) == "trainers" else fitting


def _cpu_actors(nodes: Sequence[Node], cpus: float) -> int:
    """How many actors of so many CPUs suit a cluster without GPUs."""
    if max(node.cpus for node in nodes) < SMALL_NODE:
        return 1
    return int(sum(node.cpus * node.count for node in nodes) / 2 / cpus)


def check(recipe: Recipe, stages: Sequence[Stage], nodes: Sequence[Node]) -> None:
    """Raise RecipeError where the cluster can never give a stage what it asks for; it would wait for ever."""
    for stage in stages:
        wanted = needs(recipe, stage, nodes)
        fitting = sum(node.count * _fits(wanted, node) for node in nodes)
        shape = _words(wanted.cpus, wanted.gpus, wanted.memory)
        most = "; ".join(f"{node.count} x {_words(node.cpus, node.gpus, node.memory)}" for node in nodes)
        name = f"runtime.stages.{stage.resources}"
        if not fitting:
            raise RecipeError(f"{name}: a worker asks for {shape}; no machine of the cluster has that: {most}")
        if fitting < wanted.least:
            raise RecipeError(f"{name}: asks for {wanted.least} workers of {shape}; {fitting} fit: {most}")
        cpus = sum(node.cpus * node.count for node in nodes)
        # As many trainers begin as fit; of actors the fewest, and then more where there is room.
        begin = min(wanted.most or 1, fitting) if stage.workers(recipe) == "trainers" else wanted.least
        held = begin * wanted.cpus
        if stage.has_network(recipe) and held + FEED_CPUS > cpus:
            raise RecipeError(
                f"{name}: {begin} workers hold {held:g} of {cpus:g} CPUs, and a task that feeds them needs "
                f"{FEED_CPUS}: it would wait for ever; ask for fewer cpus, or fewer workers"
            )


def _fits(wanted: Needs, node: Node) -> int:
    """How many workers a machine holds."""
    pairs = [(wanted.cpus, node.cpus), (wanted.gpus, node.gpus), (wanted.memory, node.memory)]
    return int(min(1e6, *(have / want + 1e-9 for want, have in pairs if want)))


def _words(cpus: float, gpus: float, memory: float) -> str:
    parts = [
        f"{cpus:g} CPUs",
        f"{gpus:g} GPUs" if gpus else "",
        f"{memory / GB:.1f} GB" if 0 < memory < math.inf else "",
    ]
    return ", ".join(part for part in parts if part)
