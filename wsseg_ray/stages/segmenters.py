"""The segmentation networks of a run: their names, how they begin, and where they are kept when they are trained."""

from __future__ import annotations

from collections import OrderedDict

import torch

from wsseg_ray.console import say
from wsseg_ray.hcp.trunk import load_weights
from wsseg_ray.recipe import CAM, CEILING, NETWORKS, RIVALS, START, UNREFINED, Recipe
from wsseg_ray.segmentation.models import SegmentationNetwork, create, freeze
from wsseg_ray.segmentation.objectives.ilp import ILP
from wsseg_ray.stages.checkpoints import restore, weights_source
from wsseg_ray.stages.job import Job

FOLDER = "segmenters"


def networks(recipe: Recipe) -> list[str]:
    """Names of all networks to train: the recipe's, and without refinement where the ablation is asked for."""
    names = recipe.segmentation.networks
    ablation = recipe.segmentation.ablation and recipe.refinement.enabled
    return [*names, *(name + UNREFINED for name in names if ablation and name in NETWORKS)]


def rounds(recipe: Recipe, name: str) -> int:
    """How often a network learns again, from its own labels: CAM once more than others, the ceiling never."""
    return 0 if name == CEILING else recipe.segmentation.rounds + (name == CAM)


def epochs(recipe: Recipe, name: str) -> int:
    """How many epochs a round of a network has."""
    return recipe.segmentation.rivals.start_epochs if name == START else recipe.segmentation.epochs


def learning_rate(recipe: Recipe, name: str) -> float:
    """The first learning rate of a network. The rivals with a maximum over cells have a lower one."""
    settings = recipe.segmentation
    return settings.rivals.max_learning_rate if name == "MIL_FCN" or name in ILP else settings.learning_rate


def begins_with_start(recipe: Recipe, name: str) -> bool:
    """Whether a network begins as the classifier START, which must be trained before."""
    return name in RIVALS and recipe.segmentation.rivals.start_epochs > 0


def file_of(recipe: Recipe, name: str, round_: int) -> str:
    """Where a network is kept in its folder after a round: `network.pt` after the last."""
    if name == START:
        return "weights.pt"
    return "network.pt" if round_ == rounds(recipe, name) else f"round-{round_}.pt"


def build(
    recipe: Recipe,
    classes: int,
    trunk: dict[str, torch.Tensor] | None,
    start: dict[str, torch.Tensor] | None = None,
) -> tuple[SegmentationNetwork, list[str]]:
    """A network with its first weights, and the names of the parameters that start at random.

    Arguments:
        trunk: state of this run's HCP network, for `segmentation.weights: hcp`.
        start: state of START, for a rival that begins with it.
    Raises WeightsError where the weights cannot be used.
    """
    settings = recipe.segmentation
    torch.manual_seed(recipe.seed)
    network = create(settings.model, classes + 1)
    fresh = [name for name, _ in network.named_parameters()]
    if settings.weights == "hcp":
        if trunk is not None:
            kept = {key: value for key, value in trunk.items() if key.startswith("trunk.")}
            network.load_state_dict(kept, strict=False)
            fresh = [name for name in fresh if name not in kept]
    elif settings.weights is not None:
        _, fresh = load_weights(network, weights_source(settings.weights), settings.weights)
    if start is not None:
        network.load_state_dict(start)
        fresh = []
    freeze(network, settings.freeze)
    return network, fresh


def check_weights(recipe: Recipe) -> None:
    """Raise WeightsError where the weights cannot be used; say what will start at random."""
    _, fresh = build(recipe, 1, None)
    layers = list(OrderedDict.fromkeys(name.rsplit(".", 1)[0] for name in fresh))
    if recipe.segmentation.weights not in (None, "hcp") and "fc6" in layers:
        say(
            f"{recipe.segmentation.weights} holds the conv layers alone: {', '.join(layers)} of DeepLab start at random"
        )


def trained(job: Job, name: str, round_: int | None = None) -> SegmentationNetwork:
    """A trained network, for prediction; of a round, or of the last."""
    network = create(job.recipe.segmentation.model, len(job.classes) + 1)
    file = "network.pt" if round_ is None else file_of(job.recipe, name, round_)
    network.load_state_dict(restore(job.run, FOLDER, name, file))
    return network.eval()


def read_log(job: Job, name: str) -> list[dict[str, float]]:
    """Loss of every epoch, and the share of its time that the trainer waited for photos."""
    return job.run.read_json(FOLDER, name, "log.json") or []
