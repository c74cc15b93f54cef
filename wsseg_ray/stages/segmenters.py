"""The segmentation networks of a run: which there are, how they begin, and where they are kept."""

from __future__ import annotations

import torch

from wsseg_ray.backbones.weights import load_weights
from wsseg_ray.engine.checkpoints import WEIGHTS, restore, weights_source
from wsseg_ray.engine.stage import Job
from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import Recipe
from wsseg_ray.segmentation.network import SegmentationNetwork
from wsseg_ray.segmentation.networks import NETWORKS, START, Network, unrefined
from wsseg_ray.stages.stored import dims, segmenters_read


def networks(recipe: Recipe) -> list[Network]:
    """All networks to train: the recipe's, and without refinement where the ablation is asked for."""
    named = [NETWORKS.get(name) for name in recipe.segmentation.networks]
    ablation = recipe.segmentation.ablation and recipe.refinement.enabled
    return [*named, *(unrefined(network) for network in named if ablation and network.kind == "paper")]


def network_named(recipe: Recipe, name: str) -> Network:
    """One of the networks of a recipe, or START."""
    return next(network for network in (*networks(recipe), START) if network.name == name)


def rounds(recipe: Recipe, network: Network) -> int:
    """How often a network learns again, from its own labels.

    One that begins with activation maps learns once more than others, the ceiling never.
    """
    return recipe.segmentation.rounds + network.activation_maps if network.weak else 0


def most_rounds(recipe: Recipe) -> int:
    """The largest number of rounds of the recipe's networks."""
    return max(rounds(recipe, network) for network in networks(recipe))


def of_round(recipe: Recipe, round_: int) -> list[Network]:
    """The networks that are trained in a round, counted from 0."""
    return [network for network in networks(recipe) if rounds(recipe, network) >= round_]


def folder(round_: int) -> str:
    """Where the networks of a round are kept."""
    return f"segmenters-{round_}" if round_ else "segmenters"


def last_folder(recipe: Recipe, network: Network) -> str:
    """Where a network is kept after its last round."""
    return folder(rounds(recipe, network))


def is_trained(job: Job, network: Network, round_: int) -> bool:
    """Whether a round of a network is done."""
    return job.run.exists(folder(round_), network.name, WEIGHTS)


def epochs(recipe: Recipe, network: Network) -> int:
    """How many epochs a round of a network has."""
    return recipe.segmentation.rivals.start_epochs if network is START else recipe.segmentation.epochs


def learning_rate(recipe: Recipe, network: Network) -> float:
    """The first learning rate of a network. It is lower where few cells get all of the gradient."""
    settings = recipe.segmentation
    return settings.rivals.max_learning_rate if network.max_over_cells else settings.learning_rate


def begins_with_start(recipe: Recipe, network: Network) -> bool:
    """Whether a network begins as the classifier START, which must be trained before."""
    return network.starts_as_classifier and recipe.segmentation.rivals.start_epochs > 0


def build(
    recipe: Recipe,
    classes: int,
    hcp: dict[str, torch.Tensor] | None,
    start: dict[str, torch.Tensor] | None = None,
) -> tuple[SegmentationNetwork, list[str]]:
    """A network with its first weights, and the names of the parameters that start at random.

    Arguments:
        hcp: state of this run's HCP network, for `segmentation.weights: null`.
        start: state of START, for a rival that begins with it.
    Raises WeightsError where the weights cannot be used, RecipeError where the head does not fit the backbone.
    """
    settings = recipe.segmentation
    torch.manual_seed(recipe.seed)
    network = create(recipe, classes)
    fresh = [name for name, _ in network.named_parameters()]
    if settings.weights is None:
        if hcp is not None:
            kept = {key: value for key, value in hcp.items() if key.startswith("backbone.")}
            network.load_state_dict(kept, strict=False)
            fresh = [name for name in fresh if name not in kept]
    elif settings.weights != "random":
        _, fresh = load_weights(network, weights_source(settings.weights), settings.weights)
    if start is not None:
        network.load_state_dict(start)
        fresh = []
    network.freeze(settings.freeze)
    return network, fresh


def create(recipe: Recipe, classes: int) -> SegmentationNetwork:
    """The network of a recipe, at random. Raises RecipeError where the head does not fit the backbone."""
    settings = recipe.segmentation
    try:
        reduced = dims(recipe, segmenters_read(recipe))
        return SegmentationNetwork(settings.backbone, settings.head, classes + 1, reduced)
    except ValueError as error:
        raise RecipeError(f"segmentation.head: {error}") from error


def trained(job: Job, network: Network, round_: int | None = None) -> SegmentationNetwork:
    """A trained network, for prediction; of a round, or of the last."""
    found = create(job.recipe, len(job.classes))
    place = last_folder(job.recipe, network) if round_ is None else folder(round_)
    state = restore(job.run, place, network.name, WEIGHTS)
    assert state is not None  # the stage that trains it is done
    found.load_state_dict(state)
    return found.eval()


def read_log(job: Job, network: Network, before: int | None = None) -> list[dict[str, float]]:
    """Loss of every epoch, and the share of its time that the trainer waited for photos.

    Arguments:
        before: the round before which the log ends; None: all rounds.
    """
    places = (folder(round_) for round_ in range(rounds(job.recipe, network) + 1 if before is None else before))
    return [entry for place in places for entry in job.run.read_json(place, network.name, "log.json") or []]
