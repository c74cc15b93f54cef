"""The layers of torchvision's classifiers as a backbone. This file imports torch, the variants do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from wsseg_ray.backbones.base import BaseBackbone, keep_statistics

if TYPE_CHECKING:
    from wsseg_ray.backbones.torchvision import Level


class TorchvisionBackbone(BaseBackbone, nn.ModuleDict):
    """The layers of a classifier up to the last level, by the names that they have in it, so its weights fit.

    BatchNorm keeps the statistics of its weights in training, as is usual for batches of a few photos. So a batch may
    be dealt out over workers.

    Arguments:
        classifier: whose children are passed through one after the other.
        levels: which of them give which level.
    """

    def __init__(self, classifier: nn.Module, levels: Mapping[str, Level]) -> None:
        layers = dict(classifier.named_children())
        last = list(layers).index(levels["out"].layer)
        super().__init__(dict(list(layers.items())[: last + 1]))
        self.channels = {level: of.channels for level, of in levels.items()}
        self._levels = {of.layer: level for level, of in levels.items()}

    def forward(self, photos: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps (B, C, h, w) of normalised photos (B, 3, H, W), by level."""
        maps, found = photos, {}
        for name, layer in self.items():
            maps = layer(maps)
            if name in self._levels:
                found[self._levels[name]] = maps
        return found

    def train(self, mode: bool = True) -> TorchvisionBackbone:
        super().train(mode)
        keep_statistics(self)
        return self
