"""Trained networks on photos, on an actor: for the stages that need labels of pixels."""

# ruff: noqa: RUF009 (a column is a dataclass field with its type)

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wsseg_ray.backbones.base import BaseBackbone
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.backbones.precision import mixed_precision
from wsseg_ray.engine.device import device_of
from wsseg_ray.engine.stage import Job
from wsseg_ray.segmentation.inference import View, photo_view
from wsseg_ray.segmentation.network import SegmentationNetwork
from wsseg_ray.segmentation.networks import Network
from wsseg_ray.stages.rows import PhotoRow, SeenRow
from wsseg_ray.stages.segmenters import trained
from wsseg_ray.stages.stored import columns_in, maps_of, segmenters_read
from wsseg_ray.tables import IMAGES, array, schema


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


def seen_rows(job: Job, shard: str) -> list[SeenRow]:
    """The photos of a shard, for `add_photo`, with their stored features where the networks read them."""
    rows = job.run.read_good(job.table(IMAGES), shard)
    table = segmenters_read(job.recipe)
    stored = job.run.read_good(job.table(table), shard) if table else {}
    return [SeenRow(**vars(row), **(columns_in(stored[i]) if i in stored else {})) for i, row in rows.items()]


def trained_networks(networks: Sequence[Network], round_: int | None, job: Job) -> list[SegmentationNetwork]:
    """Networks of a run as they are after a round of training, or the last."""
    return [trained(job, network, round_) for network in networks]


class Predictor:
    """Trained networks on this actor's device.

    A view of a photo that is stored passes through the heads alone.

    Arguments:
        load: the networks, on the CPU; see `trained_networks`.
        views: see `photo_views`.
    """

    def __init__(self, load: Callable[[Job], list[SegmentationNetwork]], views: dict[str, Any], job: Job) -> None:
        self._device = device_of(job.recipe)
        self._networks = [network.to(self._device) for network in load(job)]
        if job.recipe.segmentation.freeze == "all":  # then every network has the backbone that it began with
            backbone = RememberingBackbone(self._networks[0].backbone)
            for network in self._networks:
                network.backbone = backbone
        self._scales, self._mirror = views.get("scales", [1.0]), views.get("mirror", False)

    def __call__(self, row: SeenRow) -> ViewsRow:
        photo: torch.Tensor | None = None
        found: list[list[View]] = [[] for _ in self._networks]
        with mixed_precision(self._device), torch.no_grad():
            for scale in self._scales:
                for mirrored in (False, True)[: 1 + self._mirror]:
                    stored = maps_of(row, (scale, mirrored)) if row.levels else None
                    if stored is not None:
                        views = self._of_stored(stored, row, scale, mirrored)
                    else:
                        photo = self._normalised(row) if photo is None else photo
                        views = photo_view(self._networks, photo, scale, mirrored)
                    for own, view in zip(found, views, strict=True):
                        own.append(view)
        return ViewsRow(**{name: getattr(row, name) for name in schema(PhotoRow).names}, **packed(found))

    def _normalised(self, row: SeenRow) -> torch.Tensor:
        return normalise(row.photo, self._networks[0].mean, self._networks[0].std).to(self._device)

    def _of_stored(self, stored: dict[str, torch.Tensor], row: SeenRow, scale: float, mirrored: bool) -> list[View]:
        """The logits of each network from the maps of a view."""
        levels = {name: maps[None].to(self._device).float() for name, maps in stored.items()}
        height, width = (max(1, round(side * scale)) for side in (row.height, row.width))
        size = height, width
        logits = (network.head({name: levels[name] for name in network.levels}) for network in self._networks)
        return [View(own[0].float().cpu(), size, 0, mirrored) for own in logits]


class RememberingBackbone(BaseBackbone):
    """A backbone that several networks share: it has the answer where a thread asks about the same tensor again."""

    def __init__(self, backbone: BaseBackbone) -> None:
        super().__init__()
        self._backbone, self.channels = backbone, backbone.channels
        self._known = threading.local()

    def forward(self, photos: torch.Tensor) -> Any:
        if photos is not getattr(self._known, "photos", None):
            self._known.photos, self._known.answer = photos, self._backbone(photos)
        return self._known.answer
