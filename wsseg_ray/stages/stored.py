"""Stored features: which stages read them, and how they are read.

Where a backbone is frozen, stage `features` looks at each photo once. HCP, the segmentation networks and prediction
read what it stored, where their backbone is that one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.engine.stage import Job
from wsseg_ray.hcp.pooling import POOLINGS
from wsseg_ray.recipe import Recipe
from wsseg_ray.segmentation.heads import HEADS
from wsseg_ray.stages.device import arrays_of
from wsseg_ray.tables import FEATURES, SEGMENTER_FEATURES, FeatureRow, Table


class HasBytes(Protocol):
    """A tensor, an array, or several of them."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=HasBytes)

STORED = (FEATURES.folder, SEGMENTER_FEATURES.folder)
PROJECTION = "pca.npz"  # in the folder of a table of features
PLAIN = (1.0, False)  # the view of a photo as it is: its scale, and whether it is mirrored


class HasMaps(Protocol):
    """A row with stored features, as `FeatureRow` has them."""

    levels: list[str]
    shapes: np.ndarray
    maps: np.ndarray


class Kept(Generic[T]):
    """Tensors by name, made when they are first asked for, and kept until together they have a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: dict[str, T] = {}

    def get(self, name: str, make: Callable[[], T]) -> T:
        """The tensor of this name."""
        if name in self._kept:
            return self._kept[name]
        made = make()
        if self._bytes < self._limit:
            self._kept[name] = made
            self._bytes += made.nbytes
        return made


def hcp_reads(recipe: Recipe) -> Table[FeatureRow] | None:
    """The features that HCP reads; None: it passes photos through the backbone."""
    hcp = recipe.hcp
    if not recipe.features.stored or hcp.freeze != "all" or POOLINGS.get(hcp.pooling).needs_photo:
        return None
    return FEATURES


def segmenters_read(recipe: Recipe) -> Table[FeatureRow] | None:
    """The features that the segmentation networks read; None: they pass photos through the backbone."""
    segmentation = recipe.segmentation
    if not recipe.features.stored or segmentation.freeze != "all" or BACKBONES.get(segmentation.backbone).centred:
        return None
    same = segmentation.backbone == recipe.hcp.backbone and segmentation.weights in (None, recipe.hcp.weights)
    return FEATURES if same and hcp_reads(recipe) else SEGMENTER_FEATURES


def dims(recipe: Recipe, table: Table[FeatureRow] | None) -> int | None:
    """To how many dimensions the cells of a table of features are reduced; None: they are not."""
    return recipe.features.dims if table else None


def read_projection(job: Job, table: Table[FeatureRow]) -> dict[str, torch.Tensor]:
    """The state of the `Projection` that the features of a table went through; empty where they are not reduced."""
    if not job.recipe.features.dims:
        return {}
    with np.load(io.BytesIO(job.run.read_bytes(table.folder, PROJECTION))) as kept:
        return {name: torch.from_numpy(kept[name]) for name in ("mean", "components")}


def levels_stored(recipe: Recipe, table: Table[FeatureRow]) -> list[str]:
    """The levels that some stage reads of a table."""
    found = {"out"} if table == FEATURES else set()
    if segmenters_read(recipe) == table:
        found |= set(HEADS.get(recipe.segmentation.head).levels)
    return sorted(found)


def views_stored(recipe: Recipe) -> list[tuple[float, bool]]:
    """Scale, and whether mirrored, of each view that is stored, the photo as it is first."""
    settings = recipe.features
    scales = [1.0, *(scale for scale in settings.scales if scale != 1.0)]
    return [(scale, mirrored) for scale in scales for mirrored in (False, True)[: 1 + settings.mirror]]


View = tuple[float, bool, dict[str, torch.Tensor]]  # scale, whether mirrored, and maps (B, C, h, w) by level


def packed(batches: Sequence[Sequence[View]]) -> list[list[FeatureRow]]:
    """Views of batches of photos as rows, with one transfer from the device.

    Arguments:
        batches: the views of each; a batch has photos of one size.
    """
    flat, names, shapes = [], [], []
    for views in batches:
        every = [(scale, mirrored, name, maps) for scale, mirrored, levels in views for name, maps in levels.items()]
        names.append([name for _, _, name, _ in every])
        shapes.append(
            np.array([[round(1000 * scale), int(mirrored), *maps.shape[1:]] for scale, mirrored, _, maps in every])
        )
        # The largest half precision number in place of an infinite one: a row of a table must stay finite
        flat.append(torch.cat([maps.float().clamp(-65504, 65504).half().flatten(1) for *_, maps in every], dim=1))
    return [
        [FeatureRow(levels=levels, shapes=own, maps=photo) for photo in photos]
        for levels, own, photos in zip(names, shapes, arrays_of(flat), strict=True)
    ]


def maps_of(row: HasMaps, view: tuple[float, bool] = PLAIN) -> dict[str, torch.Tensor] | None:
    """The maps (C, h, w) of a view by level, half precision; None where this view is not stored."""
    found, begin = {}, 0
    for name, (scale, mirrored, channels, h, w) in zip(row.levels, row.shapes.tolist(), strict=True):
        end = begin + channels * h * w
        if (scale, bool(mirrored)) == (round(1000 * view[0]), view[1]):
            found[name] = torch.from_numpy(np.array(row.maps[begin:end])).view(channels, h, w)
        begin = end
    return found or None


def columns_in(row: FeatureRow) -> dict[str, Any]:
    """The columns of stored features, for a row that has them too."""
    return {name: getattr(row, name) for name in ("levels", "shapes", "maps")}


def map_of(row: HasMaps) -> torch.Tensor:
    """The map `out` (C, h, w) of the photo as it is, half precision."""
    levels = maps_of(row)
    assert levels is not None  # this view is always stored
    return levels["out"]
