"""What each stage asks of the cluster, and whether the cluster can ever give it.

A stage is a pool of tasks (`images`, `refine`, ...), a pool of actors that hold a network (`score`, `predict`, ...) or
a group of Ray Train workers. `runtime.stages.<name>` says how much each of them takes and how many there are; what it
leaves open is chosen here, from two cores to a thousand. An autoscaling cluster is taken for what it may become.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import ray
import yaml
from ray.autoscaler.sdk import request_resources

from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import ACTOR_STAGES, TRAINING_STAGES, Recipe

SMALL_NODE = 8  # CPUs; below it actors take half a CPU: two that ask for a whole one starve Ray Data on two cores
ACTOR_CPUS = 4  # of an actor without a GPU on a larger node: its torch threads
FEED_CPUS = 1  # of a task that feeds actors or trainers
GB = 1e9
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml").expanduser()  # where `ray up` leaves it on the head


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
    threads: int  # torch threads of a worker on CPUs

    def options(self) -> dict[str, float]:
        """As Ray's remote options."""
        found = {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory}
        return {name: value for name, value in found.items() if value or name == "num_cpus"}

    def bundle(self) -> dict[str, float]:
        """As one of Ray's resource bundles."""
        found = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: value for name, value in found.items() if value}


def cluster(recipe: Recipe) -> list[Node]:
    """The machines of this Ray: those that are there, or those that it may grow to where that is known and more.

    Ray does not tell what its autoscaler may add. It is known from `runtime.cluster`, or, on the head of a cluster that
    `ray up` made, from the file that it was made of.
    Raises RecipeError where there is no CPU, and none is known to come.
    """
    there = [_node(node["Resources"], 1) for node in ray.nodes() if node["Alive"]]
    if recipe.runtime.cluster:
        may_be = [
            Node(kind.cpus, kind.gpus, (kind.memory_gb or math.inf) * GB, kind.count) for kind in recipe.runtime.cluster
        ]
    else:
        config = yaml.safe_load(BOOTSTRAP.read_text()) if BOOTSTRAP.is_file() else {}
        kinds = config.get("available_node_types", {}).values()
        may_be = [_node({"memory": math.inf, **kind["resources"]}, kind.get("max_workers", 0)) for kind in kinds]
    nodes = max(there, may_be, key=lambda kinds: sum(node.cpus * node.count for node in kinds))
    nodes = [node for node in nodes if node.cpus and node.count]
    if not nodes:
        raise RecipeError(
            "no machine of this cluster has a CPU for work; where machines come when they are asked for, say which: "
            "--set 'runtime.cluster=[{cpus: 16, count: 8}, {cpus: 8, gpus: 1, count: 4}]'"
        )
    return nodes


def _node(resources: dict[str, float], count: int) -> Node:
    return Node(*(float(resources.get(kind, 0)) for kind in ("CPU", "GPU", "memory")), count)


def use_gpu(recipe: Recipe, nodes: list[Node]) -> bool:
    """Whether actors and Train workers ask for a GPU: the recipe's word, or `auto`: whether there is or may be one."""
    wish = recipe.runtime.use_gpu
    return any(node.gpus > 0 for node in nodes) if wish == "auto" else wish


def has_network(recipe: Recipe, stage: str) -> bool:
    """Whether a stage has actors or trainers that hold a network: `proposals` only where a trunk draws contours."""
    return stage in TRAINING_STAGES or (stage in ACTOR_STAGES and (stage != "proposals" or recipe.proposals.has_trunk))


def needs(recipe: Recipe, stage: str, nodes: list[Node] | None = None) -> Needs:
    """What a stage asks for: what its recipe says, else what suits the cluster.

    Tasks take a CPU. Actors and Train workers take a GPU and a CPU each, as many actors as there are GPUs, as many
    trainers as leave each two photos of a batch. Without GPUs: on nodes under 8 CPUs one actor or trainer of half a
    CPU that computes on all of them; on larger ones actors of 4 CPUs on half the cluster, one trainer on half a node.

    Arguments:
        nodes: of the cluster; None: of this Ray.
    """
    nodes = cluster(recipe) if nodes is None else nodes
    asked = getattr(recipe.runtime.stages, stage)
    memory = (asked.memory_gb or 0) * GB
    if not has_network(recipe, stage):
        return Needs(asked.cpus or 1, 0, memory, 1, asked.max_workers, 1)
    trains = stage in TRAINING_STAGES
    largest = max(nodes, key=lambda node: node.cpus)
    small = largest.cpus < SMALL_NODE
    gpus = asked.gpus if asked.gpus is not None else float(use_gpu(recipe, nodes))
    if gpus:
        cpus = asked.cpus or 1
        most = int(sum(node.count * math.floor(node.gpus / gpus) for node in nodes))
        if trains:
            most = min(most, {"train_hcp": recipe.hcp, "train_segmenter": recipe.segmentation}[stage].batch_size // 2)
    else:
        cpus = asked.cpus or (0.5 if small else largest.cpus // 2 if trains else ACTOR_CPUS)
        most = 1 if small or trains else int(sum(node.cpus * node.count for node in nodes) / 2 / cpus)
    most = asked.max_workers or recipe.runtime.num_workers or max(1, most)
    least = asked.min_workers or (most if trains else 1)
    threads = int(largest.cpus / most) if small else int(cpus)
    return Needs(cpus, gpus, memory, min(least, most), max(least, most), max(1, threads))


def check(recipe: Recipe, stages: list[str], nodes: list[Node] | None = None) -> None:
    """Raise RecipeError where the cluster can never give a stage what it asks for; it would wait for ever."""
    nodes = cluster(recipe) if nodes is None else nodes
    for stage in stages:
        wanted = needs(recipe, stage, nodes)
        fitting = sum(node.count * _fits(wanted, node) for node in nodes)
        shape = _words(wanted.cpus, wanted.gpus, wanted.memory)
        most = "; ".join(f"{node.count} x {_words(node.cpus, node.gpus, node.memory)}" for node in nodes)
        name = f"runtime.stages.{stage}"
        if not fitting:
            raise RecipeError(f"{name}: a worker asks for {shape}; no machine of the cluster has that: {most}")
        if fitting < wanted.least:
            raise RecipeError(f"{name}: asks for {wanted.least} workers of {shape}; {fitting} fit: {most}")
        cpus = sum(node.cpus * node.count for node in nodes)
        held = wanted.least * wanted.cpus
        if has_network(recipe, stage) and held + FEED_CPUS > cpus:
            raise RecipeError(
                f"{name}: {wanted.least} workers hold {held:g} of {cpus:g} CPUs, and a task that feeds them needs "
                f"{FEED_CPUS}: it would wait for ever; ask for fewer cpus, or fewer workers"
            )


def ask_for(recipe: Recipe, stage: str) -> None:
    """Ask the autoscaler for what a stage needs at least, so that machines come, and stay, before work waits."""
    wanted = needs(recipe, stage)
    request_resources(bundles=[*[wanted.bundle()] * wanted.least, {"CPU": FEED_CPUS}])


def ask_for_nothing() -> None:
    """Take back `ask_for`: idle machines may go."""
    request_resources(bundles=[])


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
