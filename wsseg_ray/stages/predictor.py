"""Trained networks on photos, on an actor: for the stages that need labels of pixels."""

# ruff: noqa: RUF009 (a column is a dataclass field with its type)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wsseg_ray.backbones.base import BaseBackbone
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.backbones.precision import mixed_precision
from wsseg_ray.engine.stage import Job
from wsseg_ray.segmentation.inference import View, photo_views
from wsseg_ray.segmentation.networks import Network
from wsseg_ray.stages.rows import PhotoRow
from wsseg_ray.stages.segmenters import trained
from wsseg_ray.tables import array


@dataclass
class ViewsRow(PhotoRow):
    """A photo with what networks say of its views."""

    logits: np.ndarray = array("float32", (-1,), "(sum of C h w,) of each network and view, one after the other")
    views: np.ndarray = array("int64", (-1, 8), "(n V, 8) network, C, h, w, height, width, stride, mirrored")


def packed(views: Sequence[Sequence[View]]) -> dict[str, Any]:
    """Views of each network as the columns of `ViewsRow`."""
    every = [(number, view) for number, own in enumerate(views) for view in own]
    about = [[n, *view.logits.shape, *view.size, view.stride, view.mirrored] for n, view in every]
    logits = np.concatenate([view.logits.float().numpy().ravel() for _, view in every])
    return {"logits": logits, "views": np.array(about, np.int64)}


def unpacked(row: ViewsRow) -> list[list[View]]:
    """The views of each network."""
    found: list[list[View]] = [[] for _ in range(1 + int(row.views[:, 0].max()))]
    begin = 0
    for number, channels, h, w, height, width, stride, mirrored in row.views.tolist():
        end = begin + channels * h * w
        logits = torch.from_numpy(np.array(row.logits[begin:end]).reshape(channels, h, w))
        found[number].append(View(logits, (height, width), stride, bool(mirrored)))
        begin = end
    return found


class Predictor:
    """Trained networks on this actor's device, after a round of training or the last; `views`: see `photo_views`."""

    def __init__(self, networks: Sequence[Network], round_: int | None, views: dict[str, Any], job: Job) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._networks = [trained(job, network, round_).to(self._device) for network in networks]
        if job.recipe.segmentation.freeze == "all":  # then every network has the backbone that it began with
            backbone = RememberingBackbone(self._networks[0].backbone)
            for network in self._networks:
                network.backbone = backbone
        self._views = views

    def __call__(self, row: PhotoRow) -> ViewsRow:
        first = self._networks[0]
        photo = normalise(row.photo, first.mean, first.std).to(self._device)
        with mixed_precision(self._device):
            return ViewsRow(**vars(row), **packed(photo_views(self._networks, photo, **self._views)))


class RememberingBackbone(BaseBackbone):
    """A backbone that several networks share: asked about the same tensor again, it has the answer."""

    def __init__(self, backbone: BaseBackbone) -> None:
        super().__init__()
        self._backbone, self.channels = backbone, backbone.channels
        self._last: tuple[torch.Tensor | None, Any] = (None, None)

    def forward(self, photos: torch.Tensor) -> Any:
        if photos is not self._last[0]:
            self._last = (photos, self._backbone(photos))
        return self._last[1]
