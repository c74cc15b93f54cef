"""Segmentation networks: any backbone with any head whose levels the backbone has."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.base import Projection
from wsseg_ray.hcp.dropout import dropouts_by_photo
from wsseg_ray.segmentation.grid import cell_stride
from wsseg_ray.segmentation.heads import HEADS


class SegmentationNetwork(nn.Module):
    """A fully convolutional classifier of grid cells.

    It maps normalised photos (B, 3, H, W) to logits (B, classes, h, w) on the cells of `grid`. All networks are trained
    by the same losses on the same targets. Dropout masks are drawn per photo, see `number_photos`. All weights start at
    random, drawn from torch's global generator: the backbone, then the head. The backbone has the same tensors as in
    the HCP network, so `load_weights` accepts HCP's weights.

    Arguments:
        backbone: a value of `BACKBONES`.
        head: a value of `HEADS`.
        classes_with_background: channels of the output; 0 is background.
        dims: to which each cell of the level `out` is reduced; None: all channels are kept.

    Attributes: `backbone` (can be loaded and frozen) and `head` (modules), `levels` (of the backbone, that the head
    needs), `stride`, `centred` (the kind of cells, see `grid`), `mean` and `std` (to normalise photos), `named_weights`
    and `has_fc` (the variant's).

    Raises ValueError where a name is not known, or the backbone lacks a level that the head needs.
    """

    def __init__(self, backbone: str, head: str, classes_with_background: int, dims: int | None = None) -> None:
        super().__init__()
        self.stride = cell_stride(backbone, head)
        variant, kind = BACKBONES.get(backbone), HEADS.get(head)
        self.centred, self.levels = variant.centred, kind.levels
        self.mean, self.std = variant.mean, variant.std
        self.named_weights, self.has_fc = variant.weights, variant.has_fc
        self.backbone = variant.build(True)
        channels = dict(self.backbone.channels)
        self.reduce = Projection(channels["out"], dims) if dims else None
        self.head = kind.build(variant, {**channels, "out": dims or channels["out"]}, classes_with_background)
        dropouts_by_photo(self)

    def features(self, photos: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps (B, C, h, w) of normalised photos (B, 3, H, W), of the levels that the head needs."""
        maps = dict(self.backbone(photos))
        if self.reduce is not None:
            maps["out"] = self.reduce(maps["out"])
        return {level: maps[level] for level in self.levels}

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, h, w) of normalised photos (B, 3, H, W)."""
        return self.head(self.features(photos))

    def freeze(self, count: Literal["none", "all"] | int) -> None:
        """Freeze the first `count` conv layers of the backbone; the others are trained.

        Raises ValueError where the backbone cannot freeze that many.
        """
        self.backbone.freeze(count)

    def convert_fc(
        self, fc6_weight: torch.Tensor, fc6_bias: torch.Tensor, fc7_weight: torch.Tensor, fc7_bias: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """VGG-16's fc6 (4096, 25088) and fc7 (4096, 4096) as this network's parameters.

        Returns none where the head does not use them.
        """
        convert = getattr(self.head, "convert_fc", None)
        converted = convert(fc6_weight, fc6_bias, fc7_weight, fc7_bias) if convert else {}
        return {f"head.{name}": tensor for name, tensor in converted.items()}


def parameter_groups(
    network: nn.Module, learning_rate: float, random_layers: Collection[str], weight_decay: float = 5e-4
) -> list[dict[str, Any]]:
    """SGD's four groups: weights and biases of loaded layers, then of the last layer and all that start at random.

    The last two learn ten times as fast; biases twice as fast as weights and without decay. No frozen parameters.

    Arguments:
        random_layers: names of parameters, the second result of `load_weights`.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": rate * (2 if bias else 1), "weight_decay": 0.0 if bias else weight_decay}
        for rate in (learning_rate, 10 * learning_rate)
        for bias in (False, True)
    ]
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            fast = name.startswith("head.classifier.") or name in random_layers
            groups[2 * fast + name.endswith(".bias")]["params"].append(parameter)
    return groups
