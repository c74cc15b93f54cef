"""What backbones share: photos of unlike sizes, and freezing all or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional


class BaseBackbone(nn.Module):
    """The layers of a backbone. A class of your own sets `channels` and writes `forward`.

    `forward` maps normalised photos (B, 3, H, W) to feature maps (B, C, h, w) by level. The last level is called `out`.

    Attributes: `channels`, of each level's maps, by level.
    """

    channels: Mapping[str, int]

    def maps_of(self, photos: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The maps `out` of photos of unlike sizes.

        Photos of equal size pass together, those of another size apart, or masked: see `levels_by_size`. Just filled up
        to one size, a photo would have other features near its border, since a bias and a ReLU make the filling
        non-zero.

        Arguments:
            photos: (3, H, W) each, normalised.
        Returns (C, h, w) each.
        """
        places: dict[torch.Size, list[int]] = {}
        for place, photo in enumerate(photos):
            places.setdefault(photo.shape, []).append(place)
        maps = self.maps_by_size([torch.stack([photos[place] for place in own]) for own in places.values()])
        found: dict[int, torch.Tensor] = {}
        for own, same_size in zip(places.values(), maps, strict=True):
            found |= zip(own, same_size, strict=True)
        return [found[place] for place in range(len(photos))]

    def maps_by_size(self, batches: list[torch.Tensor]) -> list[torch.Tensor]:
        """The maps `out` (B, C, h, w) of batches (B, 3, H, W), each of another size.

        BatchNorm that learns takes its statistics from each batch by itself.
        """
        return [levels["out"] for levels in self.levels_by_size(batches)]

    def levels_by_size(self, batches: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The maps (B, C, h, w) by level of batches (B, 3, H, W), each of another size."""
        return [self(batch) for batch in batches]

    def freeze(self, count: Literal["none", "all"] | int) -> None:
        """Train all layers, or none of them any further.

        Raises ValueError for a number: these layers have no order that could be counted.
        """
        if count not in ("none", "all"):
            raise ValueError(f"of this backbone none or all layers can be frozen, not {count}")
        self.requires_grad_(count == "none")


class Projection(nn.Module):
    """Each cell of a map on fewer dimensions: `P (x - m)`, with a mean m and (scaled) principal components P.

    Both are zero until they are loaded.

    Arguments:
        channels: C, of the map.
        dims: d.
    """

    mean: torch.Tensor
    components: torch.Tensor

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("components", torch.zeros(dims, channels))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, d, h, w) of maps (B, C, h, w)."""
        return functional.conv2d(maps, self.components[:, :, None, None], -self.components @ self.mean)


def keep_statistics(module: nn.Module) -> None:
    """Let each BatchNorm of a module use the statistics it has, and learn none, until `train()` is called."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
