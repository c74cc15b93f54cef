"""timm's models as a backbone. This file imports torch, the variants do not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from wsseg_ray.backbones.base import BaseBackbone, keep_statistics
from wsseg_ray.backbones.masked import canvas_pixels, each_alone, may_share_a_canvas, neighbours, on_canvas
from wsseg_ray.backbones.photos import whole_cells
from wsseg_ray.backbones.precision import full_precision

if TYPE_CHECKING:
    from wsseg_ray.backbones.timm import Levels


class TimmBackbone(BaseBackbone):
    """Levels of a model of timm, whose cells lie side by side and cover the photo, whatever its size.

    A photo is resized to the nearest whole number of cells, and shrunk where it is very large. Then it is framed so
    that cells lie where they should:

    - Models of patches (ViT, Swin, ConvNeXt): their cells lie side by side. The photo is filled up to the largest
      stride, and the cells of the filling are cut off.
    - Others (ResNet, EfficientNet): their convolutions overlap, and cell (i, j) is centred on pixel (stride i,
      stride j) of a photo of stride k + 1 pixels. Half a cell is put before the photo, and the first cell is cut off:
      so the next one is centred on the first cell of the photo.

    `out` joins levels at the smallest stride among them. The channels of each level are divided by their root mean
    square in each cell (the L2 norm, times the root of their number), so that no level outweighs another. BatchNorm
    keeps the statistics of its weights in training, as is usual for batches of a few photos.

    With several scales the photo is seen at each, and `out` joins what is seen, in the cells of the photo itself. Small
    objects are seen better at a large scale, and the surroundings of a cell at a small one. Costs the sum of the
    squared scales.

    Arguments:
        model: of timm, whole; layers behind the last level are cut off.
        levels: that it gives.
        scales: factors of the photo's sides; `low` is of the first.
    """

    def __init__(self, model: Any, levels: Levels, scales: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self._scales = tuple(scales)
        self.model: Any = model.to(memory_format=torch.channels_last)
        self._levels = levels
        self._ordered = [*([levels.low] if levels.low else []), *levels.joined]
        self._has_patches = has_patches(model)
        self.stride = min(level.stride for level in levels.joined)
        self._largest = max(level.stride for level in levels.joined)
        low = {"low": levels.low.channels} if levels.low else {}
        self.channels = {**low, "out": len(self._scales) * sum(level.channels for level in levels.joined)}
        model.prune_intermediate_layers([level.number for level in levels.joined], prune_norm=not levels.is_plain)

    def forward(self, photos: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps (B, C, h, w) of normalised photos (B, 3, H, W), by level; h is H / stride, rounded."""
        return self._at_photo(photos, [self._at_scale(photos, scale) for scale in self._scales])

    def levels_by_size(self, batches: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The maps by level of batches of unlike sizes, rounding aside those of each batch by itself.

        On a GPU, where nothing is trained and `is_local`, all photos pass together, unless most of their canvas would
        be filling. Then each layer is called once, and not once per size.
        """
        sizes = {(int(photos.shape[2]), int(photos.shape[3])): len(photos) for photos in batches}
        gains = len(batches) > 1 and batches[0].is_cuda and not (self.training or torch.is_grad_enabled())
        together = gains and canvas_pixels(sizes) is not None and self.is_local
        return self.levels_together(batches) if together else super().levels_by_size(batches)

    def levels_together(self, batches: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """`levels_by_size` with all photos on one canvas; for networks that are `is_local`."""
        seen = [self._together_at_scale(batches, scale) for scale in self._scales]
        return [self._at_photo(photos, own) for photos, *own in zip(batches, *seen, strict=True)]

    @cached_property
    def is_local(self) -> bool:
        """Whether the model gives photos on one canvas the maps that it gives them apart: tried once, on noise."""
        if self._has_patches:
            return False
        own = next(self.model.parameters())
        with torch.no_grad(), full_precision(own.device):
            return may_share_a_canvas(self.model, self._look)

    @cached_property
    def _neighbours(self) -> list[nn.Module]:
        return neighbours(self.model)

    def _at_photo(self, photos: torch.Tensor, seen: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Levels at each scale, joined in the cells of the photos themselves."""
        height, width = (int(side) for side in photos.shape[2:])  # an exported program takes photos of one size
        rows, columns = (side // self.stride for side in whole_cells(height, width, self.stride))
        found = {"out": torch.cat([resized(maps["out"], rows, columns) for maps in seen], dim=1)}
        if self._levels.low:
            found["low"] = resized(seen[0]["low"], 2 * rows, 2 * columns)
        return found

    def _at_scale(self, photos: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
        """The levels of the photos at one scale, in the cells of that scale."""
        photos = fitted(photos, self.stride, scale)
        return self._inside(self._joined(self._look(self._framed(photos))), photos)

    def _together_at_scale(self, batches: Sequence[torch.Tensor], scale: float) -> list[dict[str, torch.Tensor]]:
        batches = [fitted(photos, self.stride, scale) for photos in batches]
        canvas, sizes = on_canvas([self._framed(photos) for photos in batches])
        with each_alone(self._neighbours, sizes, canvas.shape):
            levels = self._joined(self._look(canvas))
        parts = {name: maps.split([len(photos) for photos in batches]) for name, maps in levels.items()}
        return [
            self._inside({name: own[place] for name, own in parts.items()}, photos)
            for place, photos in enumerate(batches)
        ]

    def _look(self, framed: torch.Tensor) -> list[torch.Tensor]:
        """The model's own maps of its levels, the finest first."""
        more = {"norm": True} if self._levels.is_plain else {}
        indices = [level.number for level in self._ordered]
        found: list[torch.Tensor] = self.model.forward_intermediates(
            framed, indices=indices, intermediates_only=True, output_fmt="NCHW", stop_early=True, **more
        )
        return found

    def _inside(self, levels: dict[str, torch.Tensor], photos: torch.Tensor) -> dict[str, torch.Tensor]:
        """The cells of levels that cover the photos, without those of the frame."""
        rows, columns = (side // self.stride for side in photos.shape[2:])
        first = 0 if self._has_patches else 1
        finer = {"out": 1, "low": 2}
        return {
            name: maps[:, :, first : first + finer[name] * rows, first : first + finer[name] * columns]
            for name, maps in levels.items()
        }

    def _framed(self, photos: torch.Tensor) -> torch.Tensor:
        """The photos with a border of the mean colour, see the class."""
        before, behind, more = (0, 0, 0) if self._has_patches else (self.stride // 2, self.stride, 1)
        sides = []
        for side in map(int, reversed(photos.shape[2:])):
            # What the last cell needs behind it, and then whole cells of the largest stride.
            size = -(-(side + behind) // self._largest) * self._largest + more
            sides += [before, size - before - side]
        return functional.pad(photos, sides) if any(sides) else photos

    def _joined(self, maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """`out`, the levels as one map at the size of the finest one, and `low`."""
        joined = maps[-len(self._levels.joined) :]
        size = max(level.shape[2:] for level in joined)
        parts = [unit_mean_square(level) for level in joined]
        found = {
            "out": torch.cat(
                [
                    part
                    if part.shape[2:] == size
                    else functional.interpolate(part, size, mode="bilinear", align_corners=not self._has_patches)
                    for part in parts
                ],
                dim=1,
            )
        }
        if self._levels.low:
            low = unit_mean_square(maps[0])
            # Where cells overlap, those of `low` lie half a cell off: the mean of two lies between them
            found["low"] = low if self._has_patches else functional.avg_pool2d(low, 2, stride=1)
        return found

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        if any(parameter.requires_grad for parameter in self.parameters()):
            keep_statistics(self)
        else:
            super().train(False)
        return self


def fitted(photos: torch.Tensor, stride: int, scale: float = 1) -> torch.Tensor:
    """Photos (B, 3, H, W), their sides times a scale and resized to `whole_cells`."""
    height, width = (int(side) for side in photos.shape[2:])
    rows, columns = whole_cells(max(1, round(scale * height)), max(1, round(scale * width)), stride)
    smaller = rows < height or columns < width
    return resized(photos, rows, columns, antialias=smaller)


def resized(maps: torch.Tensor, rows: int, columns: int, antialias: bool = False) -> torch.Tensor:
    """Maps or photos (B, C, H, W) with so many rows and columns."""
    if maps.shape[2:] == (rows, columns):
        return maps
    return functional.interpolate(maps, (rows, columns), mode="bilinear", antialias=antialias)


def unit_mean_square(maps: torch.Tensor) -> torch.Tensor:
    """Maps (B, C, h, w), each cell divided by the root mean square of its channels."""
    return functional.normalize(maps, dim=1) * maps.shape[1] ** 0.5


def has_patches(model: nn.Module) -> bool:
    """Whether a model's cells lie side by side: each strided convolution takes every pixel once."""
    convolutions = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    return all(layer.kernel_size == layer.stride for layer in convolutions if max(layer.stride) > 1)
