"""A trained network as one file: safetensors, with all that is needed to use it and a card that says what it is.

The tensors are those of `SegmentationNetwork`. The file's metadata has, as text: `wsseg`, the form's number; `network`,
its name; `classes`, as JSON; `recipe`, as YAML, without the places of photos; `card`, in Markdown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
import yaml

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import Recipe, dump, validate
from wsseg_ray.segmentation.network import SegmentationNetwork
from wsseg_ray.segmentation.networks import Network
from wsseg_ray.stages import segmenters

SUFFIX = ".safetensors"
FORM = "1"


class Trained(NamedTuple):
    """A trained network, and what prediction needs of its run.

    Arguments:
        classes: names of the classes 1..C; 0 is background.
        about: what the network is.
    """

    recipe: Recipe
    classes: list[str]
    about: Network
    network: SegmentationNetwork


def save(trained: Trained, metrics: Mapping[str, Any], out: Path) -> None:
    """Write a network to a file, and its card beside it as Markdown.

    Arguments:
        metrics: of the run, as its `metrics.json` has them, for the card.
        out: the file; the card's name ends in `.md` instead.
    """
    out.write_bytes(as_bytes(trained, metrics))
    out.with_suffix(".md").write_text(card(trained, metrics))


def as_bytes(trained: Trained, metrics: Mapping[str, Any]) -> bytes:
    """The content of a network's file; see `save`."""
    metadata = {
        "wsseg": FORM,
        "network": trained.about.name,
        "classes": json.dumps(trained.classes),
        "recipe": dump(_without_places(trained.recipe)),
        "card": card(trained, metrics),
    }
    return safetensors.torch.save(_tensors(trained), metadata)


def digest(trained: Trained) -> str:
    """A short hash of a network's tensors; equal tensors have equal hashes."""
    found = hashlib.sha256()
    for name, tensor in sorted(_tensors(trained).items()):
        found.update(name.encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:16]


def read_file(file: Path) -> Trained:
    """A network from its file, on the CPU.

    Raises RecipeError where the file cannot be read or holds something else.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RecipeError(f"{file}: is no file of a network: {error}") from error
    return read(data, str(file))


def read(data: bytes, name: str) -> Trained:
    """A network from the content of its file, on the CPU.

    Arguments:
        name: of the file, for messages.
    Raises RecipeError where the file holds something else.
    """
    try:
        metadata = _metadata(data)
        if metadata.get("wsseg") != FORM:
            raise RecipeError(f"{name}: holds tensors, but no network that `wsseg export --format safetensors` wrote")
        recipe, classes = validate(yaml.safe_load(metadata["recipe"])), json.loads(metadata["classes"])
        about = segmenters.network_named(recipe, metadata["network"])
        network = segmenters.create(recipe, len(classes))
        network.load_state_dict(safetensors.torch.load(data))
    except RecipeError:  # says it all; it is a ValueError too
        raise
    except (safetensors.SafetensorError, KeyError, ValueError, yaml.YAMLError, RuntimeError) as error:
        raise RecipeError(f"{name}: is no file of a network: {error}") from error
    return Trained(recipe, classes, about, network.eval())


def _tensors(trained: Trained) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in trained.network.state_dict().items()}


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of safetensors: eight bytes with the length of the header, then the header as JSON.

    Raises ValueError where the bytes are not that.
    """
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= len(data) - 8:
        raise ValueError("its header is damaged")
    header = json.loads(data[8 : 8 + size])
    return (header.get("__metadata__") if isinstance(header, dict) else None) or {}


def card(trained: Trained, metrics: Mapping[str, Any]) -> str:
    """What a network is, in Markdown: classes, data, results, how it learned, and licence of its backbone."""
    recipe, name = trained.recipe, trained.about.name
    data = metrics.get("data", {})
    val = metrics.get("networks", {}).get(name, {}).get("val", {})
    masks = "its photos' true masks" if trained.about.target == "truth" else "the names of what is in each photo alone"
    lines = [
        f"# {name}",
        "",
        f"A network that labels every pixel of a photo, trained by wsseg_ray from {masks}.",
        "",
        f"- Classes: 0 background, {_numbered(trained.classes)}",
        f"- Training photos: {data.get('train', 'not known')}; val photos: {data.get('val', 'not known')}",
        f"- Backbone: `{recipe.segmentation.backbone}`; head: `{recipe.segmentation.head}`",
        f"- Licence of the backbone's weights: {_licence(recipe)}",
        f"- Seed: {recipe.seed}; photos are shrunk to {recipe.dataset.max_side or 'no size'} pixels",
        *(["- SAM's masks were among the proposals: SAM has learned from outlines"] if recipe.proposals.sam else []),
        "",
        *_results(val),
        "## Recipe",
        "",
        "```yaml",
        dump(_without_places(recipe)).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _numbered(classes: Sequence[str]) -> str:
    return ", ".join(f"{value} {name}" for value, name in enumerate(classes, 1))


def _results(val: Mapping[str, Any]) -> list[str]:
    """IoU on val as a table; nothing where val has no masks."""
    kinds = {"without CRF": ("miou", "iou"), "with CRF": ("miou_crf", "iou_crf")}
    known = {title: keys for title, keys in kinds.items() if val.get(keys[0]) is not None}
    if not known:
        return []
    names = list(val[next(iter(known.values()))[1]])
    rows = [[f"{val[total]:.1f}", *(f"{val[each][name]:.1f}" for name in names)] for total, each in known.values()]
    table = [["IoU on val, %", *known], *([name, *own] for name, *own in zip(["mean", *names], *rows, strict=True))]
    lines = [f"| {' | '.join(row)} |" for row in table]
    return ["## Results", "", lines[0], f"|{'---|' * len(table[0])}", *lines[1:], ""]


def _licence(recipe: Recipe) -> str:
    weights = recipe.segmentation.weights or recipe.hcp.weights
    if weights in (None, "random"):
        return "none: they started at random"
    known = BACKBONES.get(recipe.segmentation.backbone).weights
    name = next(iter(known), "") if weights == "auto" else weights
    return known[name].licence if name in known else f"that of the file {Path(weights).name}"


def _without_places(recipe: Recipe) -> Recipe:
    """The recipe without paths and URIs: they are of no use elsewhere, and may hold credentials."""
    changed = {"dataset": {"root": None}, "proposals": {"root": None}}
    return recipe.model_copy(
        update={name: getattr(recipe, name).model_copy(update=own) for name, own in changed.items()}
    )
