"""The network that scores regions, in a run: how it begins, and where it is kept when it is trained."""

from __future__ import annotations

from typing import Any

import torch

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.named import WORDS
from wsseg_ray.backbones.weights import load_weights
from wsseg_ray.engine.checkpoints import WEIGHTS, restore, weights_source
from wsseg_ray.engine.stage import Job
from wsseg_ray.hcp import LOSSES
from wsseg_ray.hcp.loss import Loss
from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.recipe import Recipe
from wsseg_ray.stages.stored import dims, hcp_reads

FOLDER = "hcp"


def build(recipe: Recipe, classes: int) -> tuple[HypothesisNetwork, list[str]]:
    """The network with its first weights, and the names of the parameters that start at random.

    Raises WeightsError where the weights cannot be used.
    """
    settings = recipe.hcp
    torch.manual_seed(recipe.seed)
    network = HypothesisNetwork(settings.backbone, classes, settings.pooling, dims(recipe, hcp_reads(recipe)))
    fresh = [name for name, _ in network.named_parameters()]
    if settings.weights is not None:
        _, fresh = load_weights(network, weights_source(settings.weights), settings.weights)
        if "head.fc6.weight" in fresh:
            network.head.feature_scale.fill_(settings.random_fc6_scale)
    network.backbone.freeze(settings.freeze)
    return network, fresh


def trained(job: Job) -> HypothesisNetwork:
    """The trained network, for scoring."""
    hcp = job.recipe.hcp
    reduced = dims(job.recipe, hcp_reads(job.recipe))
    network = HypothesisNetwork(hcp.backbone, len(job.classes), hcp.pooling, reduced)
    state = restore(job.run, FOLDER, WEIGHTS)
    assert state is not None  # the stage that trains it is done
    network.load_state_dict(state)
    return network.eval()


def loss_of(recipe: Recipe) -> Loss:
    """What the network is trained by; it says how logits become scores, too."""
    return LOSSES.get(recipe.hcp.loss)


def colours_of(backbone: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The mean and standard deviation by which a backbone's photos are normalised."""
    variant = BACKBONES.get(backbone)
    return variant.mean, variant.std


def read_log(job: Job) -> list[dict[str, Any]]:
    """The loss of each epoch."""
    return (job.run.read_json(FOLDER, "log.json") or {}).get("log", [])


def freeze_problem(backbone: str, freeze: str | int) -> str:
    """Why a backbone cannot be frozen so, or ""."""
    if not isinstance(freeze, int):
        return ""
    layers = BACKBONES.get(backbone).conv_layers
    if layers is None:
        return f"the backbone '{backbone}' can freeze all layers or none, not {freeze}"
    return f"the backbone '{backbone}' has {layers} conv layers, not {freeze}" if freeze > layers else ""


def backbone_problems(section: str, backbone: str, weights: str | None, freeze: str | int) -> list[str]:
    """What is wrong with a recipe's backbone, weights and freezing, in the section `hcp` or `segmentation`."""
    variant = BACKBONES.get(backbone)
    serves = variant.stride if section == "hcp" else variant.dense_strides
    if not serves:
        return [f"{section}.backbone: '{backbone}' does not serve {'regions' if section == 'hcp' else 'segmentation'}"]
    found = []
    if weights in WORDS and (weights if weights != "auto" else next(iter(variant.weights), "")) not in variant.weights:
        there = f"there are {', '.join(variant.weights)}; or" if variant.weights else "it has none that can be named;"
        found.append(
            f"{section}.weights: '{weights}' does not exist for the backbone '{backbone}': {there} give a file, or "
            "null to start at random"
        )
    if problem := freeze_problem(backbone, freeze):
        found.append(f"{section}.freeze: {problem}")
    return found


def cautions(section: str, freeze: str | int) -> list[str]:
    """What `plan` cannot know of a training."""
    if freeze != "all":
        return []
    return [
        f"{section}.freeze=all keeps the features of photos in 1 to 2 GB of a worker's memory; "
        "features that do not fit are computed in every epoch, which takes longer than planned"
    ]
