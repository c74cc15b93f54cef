"""What `auto` in a recipe becomes: chosen by the machine, the weights at hand and the data set.

A run keeps its choices in `run.json`, so that it goes on with them on another machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel

from wsseg_ray import datasets
from wsseg_ray.backbones.named import is_downloaded, is_reachable, package_file
from wsseg_ray.datasets.place import Place
from wsseg_ray.engine import resources
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import AUTO, Recipe, validate

LARGE = "timm:vit_small_patch14_dinov2"  # where there is a GPU, and its weights can be had
LARGE_HUB = "timm/vit_small_patch14_dinov2.lvd142m"
LITE2 = "timm:tf_efficientnet_lite2"  # finds the boundaries for proposals, too
SMALL = f"{LITE2}*1,1.5"  # 0.3 s per photo on a core; its weights come with the installation
FEW = 1000  # training photos up to which a second training, on a network's own labels, is worth its time
REGIONS_SEEN = 2400  # photos whose regions HCP learns from, in each round
SEEN = 9000  # photos that HCP, in each phase, and a segmentation network learn from: fewer epochs for more photos


class Choice(NamedTuple):
    """What a key became, and why."""

    key: str
    value: Any
    reason: str


def settle(recipe: Recipe, kept: dict[str, Any] | None = None) -> tuple[Recipe, list[Choice]]:
    """The recipe without `auto`, and the choices.

    Arguments:
        kept: the choices that a run made before, by key; they are taken again.
    Raises DatasetError where the data set must be known and cannot be read, RecipeError where a choice does not fit the
    other settings.
    """
    found: list[Choice] = []
    for key, choose in CHOICES.items():
        if _get(recipe, key) != AUTO:
            continue
        value, reason = (kept[key], "as before") if kept and key in kept else choose(recipe)
        recipe = _with(recipe, key, value)
        found.append(Choice(key, value, reason))
    return (validate(recipe.model_dump()) if found else recipe), found


def _layout(recipe: Recipe) -> tuple[str, str]:
    return datasets.layout_of(_root(recipe)), f"what lies in {recipe.dataset.root}"


def _train_split(recipe: Recipe) -> tuple[str, str]:
    if recipe.dataset.layout != "voc":
        return "train", f"layout {recipe.dataset.layout}"
    sets = _root(recipe) / "ImageSets"
    has_aug = any(name.endswith("train_aug.txt") for folder in sets.entries() for name in (sets / folder).entries())
    return ("train_aug", "it is in ImageSets") if has_aug else ("train", "there is no train_aug in ImageSets")


def _root(recipe: Recipe) -> Place:
    if recipe.dataset.root is None:
        raise DatasetError("dataset.root: give the folder of your photos: --set dataset.root=FOLDER")
    return Place.at(recipe.dataset.root)


def _has_gpu(recipe: Recipe) -> bool:
    """Whether a GPU is here, or may be in the cluster."""
    if recipe.runtime.use_gpu != "auto":
        return recipe.runtime.use_gpu
    import torch

    return torch.cuda.is_available() or any(machine.gpus for machine in resources.machines(recipe))


def _backbone(recipe: Recipe) -> tuple[str, str]:
    if not _has_gpu(recipe):
        return SMALL, "no GPU"
    if is_downloaded(LARGE_HUB):
        return LARGE, "a GPU, and its weights are on this machine"
    if is_reachable(LARGE_HUB):
        return LARGE, "a GPU, and its weights can be downloaded"
    return SMALL, f"a GPU, but the weights of {LARGE} cannot be downloaded"


def _boundaries(recipe: Recipe) -> tuple[str | None, str]:
    if package_file() is None:
        return None, f"{LITE2}'s weights are not installed"
    return LITE2, "its weights are installed"


def _same_backbone(recipe: Recipe) -> tuple[str, str]:
    return recipe.hcp.backbone, "that of HCP"


def _max_side(recipe: Recipe) -> tuple[int | None, str]:
    return (500, "a GPU") if _has_gpu(recipe) else (400, "no GPU")


def _train_photos(recipe: Recipe) -> int:
    photos = datasets.list_photos(recipe.dataset, seed=recipe.seed).photos
    return sum(photo.split == "train" and not photo.error for photo in photos)


def _epochs(recipe: Recipe) -> tuple[int, str]:
    count = _train_photos(recipe)
    return min(30, max(6, round(SEEN / count))), f"{count} training photos"


def _hcp_epochs(recipe: Recipe) -> tuple[int, str]:
    count = _train_photos(recipe)
    return min(15, max(3, round(SEEN / count))), f"{count} training photos"


def _decay(recipe: Recipe) -> tuple[int, str]:
    return max(1, round(recipe.hcp.image_epochs * 2 / 3)), "two thirds of its epochs"


def _region_epochs(recipe: Recipe) -> tuple[int, str]:
    count = _train_photos(recipe)
    return min(4, max(1, round(REGIONS_SEEN / count))), f"{count} training photos"


def _rounds(recipe: Recipe) -> tuple[int, str]:
    count = _train_photos(recipe)
    return int(count <= FEW), f"{count} training photos"


# In this order: later choices may depend on earlier ones.
CHOICES: dict[str, Callable[[Recipe], tuple[Any, str]]] = {
    "dataset.layout": _layout,
    "dataset.train_split": _train_split,
    "dataset.max_side": _max_side,
    "proposals.backbone": _boundaries,
    "hcp.backbone": _backbone,
    "hcp.image_epochs": _hcp_epochs,
    "hcp.hypothesis_epochs": _hcp_epochs,
    "hcp.region_epochs": _region_epochs,
    "hcp.decay_every": _decay,
    "segmentation.backbone": _same_backbone,
    "segmentation.epochs": _epochs,
    "segmentation.rounds": _rounds,
}


def _get(recipe: Recipe, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(recipe, section), name)


def _with(recipe: Recipe, key: str, value: Any) -> Recipe:
    name, _, own = key.partition(".")
    section: BaseModel = getattr(recipe, name)
    return recipe.model_copy(update={name: section.model_copy(update={own: value})})
