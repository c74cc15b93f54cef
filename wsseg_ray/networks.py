"""A run's trained networks without Ray: labels of new photos, and files for other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from wsseg_ray import network_file
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.datasets.pixels import photo_size, read_photo
from wsseg_ray.engine.stage import Job, open_run
from wsseg_ray.errors import RecipeError
from wsseg_ray.network_file import Trained
from wsseg_ray.recipe import Recipe
from wsseg_ray.segmentation.inference import View, fill_cells, photo_views, upsample
from wsseg_ray.segmentation.network import SegmentationNetwork
from wsseg_ray.segmentation.networks import Network
from wsseg_ray.stages import segmenters
from wsseg_ray.stages.labels import bounded, enlarge, probabilities, segment
from wsseg_ray.storage import RunDirectory

FORMATS = ("safetensors", "state_dict", "torchscript", "onnx")


def open_network(place: str, name: str | None = None) -> Trained:
    """One of a run's networks, or the network of a file, on the CPU.

    Arguments:
        place: a run directory, or a file that `export` wrote as `safetensors`.
        name: None: the network with the best mIoU on val, or the first one where val has no masks.
    Raises RecipeError where the run or the network is not there.
    """
    if place.endswith(network_file.SUFFIX):
        found = network_file.read_file(Path(place))
        if name not in (None, found.about.name):
            raise RecipeError(f"{place} has no network '{name}'; it has {found.about.name}")
        return found
    job = open_run(place)
    trained = {
        network.name: network
        for network in segmenters.networks(job.recipe)
        if segmenters.is_trained(job, network, segmenters.rounds(job.recipe, network))
    }
    if name is None and trained:
        name = max(trained, key=lambda one: _val(job, one))
    if name not in trained:
        have = f"it has {', '.join(trained)}" if trained else "none is trained yet"
        raise RecipeError(f"{place} has no network{f' {name!r}' if name else ''}; {have}")
    return Trained(job.recipe, job.classes, trained[name], segmenters.trained(job, trained[name]))


def _val(job: Job, name: str) -> float:
    """mIoU of a network on val, in percent, after the CRF if there is one; 0 where it is not known."""
    val = _metrics(job.run.root).get("networks", {}).get(name, {}).get("val", {})
    return val.get("miou_crf") or val.get("miou") or 0.0


def _metrics(place: str) -> dict[str, Any]:
    """A run's metrics; none of a file."""
    return {} if place.endswith(network_file.SUFFIX) else RunDirectory.at(place).read_json("metrics.json") or {}


def predict_photo(trained: Trained, data: bytes) -> np.ndarray:
    """Labels (H, W) uint8 of a photo, from the bytes of its file, after the CRF if the recipe has one.

    Raises ValueError or OSError where it cannot be decoded.
    """
    return labels_of(trained.recipe, trained.about, *_views(trained, data), photo_size(data))


def photo_probabilities(trained: Trained, data: bytes) -> np.ndarray:
    """What a network says of a photo before the CRF: (C + 1, h, w) float32, the photo's size after `dataset.max_side`.

    Raises ValueError or OSError where it cannot be decoded.
    """
    return probabilities_of(trained.recipe, trained.about, *_views(trained, data))


def labels_of(
    recipe: Recipe, about: Network, photo: np.ndarray, views: list[View], size: tuple[int, int]
) -> np.ndarray:
    """Labels (height, width) uint8 of a size, from a network's views of a photo, after the CRF if there is one."""
    return enlarge(segment(recipe, [about], photo, [views])[0][-1], size)


def probabilities_of(recipe: Recipe, about: Network, photo: np.ndarray, views: list[View]) -> np.ndarray:
    """What a network's views say of a photo before the CRF: (C + 1, h, w) float32."""
    return probabilities(recipe, about, bounded(photo), views).numpy()


def _views(trained: Trained, data: bytes) -> tuple[np.ndarray, list[View]]:
    """A photo as the network sees it, and the network's logits."""
    recipe, _, _, network = trained
    photo = read_photo(data, recipe.dataset.max_side)
    shown = normalise(photo, network.mean, network.std)
    return photo, photo_views([network], shown, **recipe.prediction.model_dump())[0]


class ExportedNetwork(nn.Module):
    """What is exported: photos (B, 3, H, W), RGB in 0..1, to probabilities (B, C, H, W), channel 0 the background."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(network.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(network.std)[:, None, None])

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        height, width = photos.shape[2:]
        filled = (photos - self.mean) / self.std
        if self.network.centred:
            filled = fill_cells(filled, self.network.stride)
        logits = upsample(self.network(filled), filled.shape[2], filled.shape[3], self.network.centred)
        return functional.softmax(logits[:, :, :height, :width], dim=1)


def export(run: str, name: str, form: str, out: Path, size: tuple[int, int] | None = None) -> None:
    """Write a network for other programs, without the CRF, or as a file of its own.

    Arguments:
        form: `safetensors`, a file that `open_network` opens as it does a run, and a card beside it, see
            `network_file`; `state_dict`, the tensors of `SegmentationNetwork(backbone, head, len(classes) + 1)`, with
            `backbone`, `head` and `classes`; or `torchscript` or `onnx`: `ExportedNetwork` as a program. ONNX's
            metadata has the names of the output's channels as JSON, under `classes`.
        out: the file to write.
        size: height and width of the photos that the program takes; None: any size.
    Raises RecipeError where the form, the run or the network is not there, or a package to write ONNX with, or where
    the network's cells lie side by side and no size is given.
    """
    if form not in FORMATS:
        raise RecipeError(f"--format {form}: there are {', '.join(FORMATS)}")
    trained = open_network(run, name)
    recipe, classes, _, network = trained
    if form == "safetensors":
        network_file.save(trained, _metrics(run), out)
        return
    if form == "state_dict":
        settings = recipe.segmentation
        about = {"backbone": settings.backbone, "head": settings.head, "classes": classes}
        torch.save({**about, "state_dict": network.state_dict()}, out)
        return
    if size is None and not network.centred:
        raise RecipeError(
            f"--format {form}: with the backbone '{recipe.segmentation.backbone}' a program takes photos of one size "
            "only; give the size, such as --size 300x400 (height x width)"
        )
    program(network, form, out, size, classes)


def program(
    network: SegmentationNetwork, form: str, out: Path, size: tuple[int, int] | None, classes: Sequence[str]
) -> None:
    """Write a network as a program, `torchscript` or `onnx`, for batches of photos; see `export`."""
    example = torch.rand(2, 3, *(size or (129, 161)))  # a batch of 1 would be taken for a constant
    if form == "torchscript":
        torch.jit.save(torch.jit.trace(ExportedNetwork(network).eval(), example), out)
        return
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RecipeError("ONNX needs onnxscript: pip install '.[onnx]'") from error
    made = torch.onnx.export(
        ExportedNetwork(network).eval(),
        (example,),
        input_names=["photos"],
        output_names=["probabilities"],
        dynamic_shapes=(dict.fromkeys((0,) if size else (0, 2, 3), torch.export.Dim.DYNAMIC),),
        dynamo=True,
        verbose=False,
    )
    assert made is not None  # it is, with `dynamo`
    made.model.metadata_props["classes"] = json.dumps(["background", *classes])
    made.save(out, external_data=False)
