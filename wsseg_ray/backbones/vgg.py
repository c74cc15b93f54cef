"""VGG-style conv layers: 3x3 convolutions in a row, and pools that halve the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from wsseg_ray.backbones.base import BaseBackbone
from wsseg_ray.backbones.weights import initialise

Layers = Sequence[int | Literal["pool"]]  # channels of each conv layer, `pool` between them


class VGG(BaseBackbone, nn.Sequential):
    """Conv layers in a row, of which the first may be frozen: their BatchNorm then keeps its statistics in training."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.channels = {"out": [layer for layer in layers if isinstance(layer, nn.Conv2d)][-1].out_channels}

    def forward(self, photos: torch.Tensor) -> dict[str, torch.Tensor]:
        """The feature map `out` (B, C, h, w) of normalised photos (B, 3, H, W)."""
        return {"out": super().forward(photos)}

    def train(self, mode: bool = True) -> VGG:
        super().train(mode)
        for layer in self:
            if isinstance(layer, nn.BatchNorm2d) and not layer.weight.requires_grad:
                layer.eval()
        return self

    def maps_by_size(self, batches: list[torch.Tensor]) -> list[torch.Tensor]:
        """The maps `out` of batches of unlike sizes. In training BatchNorm takes its statistics from all of them."""
        for layer in self:
            if isinstance(layer, nn.BatchNorm2d) and layer.training:
                batches = _normalised_together(layer, batches)
            else:
                batches = [layer(batch) for batch in batches]
        return batches

    def freeze(self, count: Literal["none", "all"] | int) -> None:
        """Train the first `count` conv layers no further, counted from the photo up; the others train.

        BatchNorm behind a frozen conv layer is frozen with it, and keeps its statistics also after `train()`.

        Raises ValueError where there are fewer conv layers.
        """
        convs = sum(isinstance(layer, nn.Conv2d) for layer in self)
        frozen = count if isinstance(count, int) else {"none": 0, "all": convs}[count]
        if frozen > convs:
            raise ValueError(f"cannot freeze {frozen} conv layers of {convs}; `all` freezes every one")
        seen = 0
        for layer in self:
            seen += isinstance(layer, nn.Conv2d)
            layer.requires_grad_(seen > frozen)
        self.train(self.training)


def conv_layers(
    layers: Layers,
    batch_norm: bool = False,
    dense_stride: int | None = None,
    dense_tail: bool = False,
) -> VGG:
    """Conv layers at random, up to the last ReLU (VGG-16: relu5_3, without pool5), for regions or for segmentation.

    For regions, pools of 2x2 put cells side by side. For segmentation all layers are centred, as DeepLab has them:
    pools of 3x3 with stride 2 start at the first pixel, so cell (i, j) looks at the photo around pixel (stride i,
    stride j). Pools that would make cells larger than `dense_stride` have stride 1, and the convolutions behind them
    are dilated instead.

    VGG-16's layers keep the numbers of torchvision's `features`, so its weights fit by name.

    Arguments:
        layers: channels of each conv layer, `pool` between them.
        batch_norm: whether each conv layer has BatchNorm behind it.
        dense_stride: photo pixels from cell to cell, for segmentation; None: for regions.
        dense_tail: for segmentation, end with DeepLab's pool5 and its mean of 3x3 cells.
    """
    modules: list[nn.Module] = []
    channels, stride = 3, 1
    for width in layers:
        if width == "pool":
            stride *= 2
            if dense_stride is None:
                modules.append(nn.MaxPool2d(2))
            else:
                modules.append(_centred_pool(2 if stride <= dense_stride else 1))
            continue
        dilation = 1 if dense_stride is None else max(1, stride // dense_stride)
        modules.append(nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation))
        if batch_norm:
            modules.append(nn.BatchNorm2d(width))
        modules.append(nn.ReLU(inplace=True))
        channels = width
    if dense_stride is not None and dense_tail:
        modules += [_centred_pool(1), nn.AvgPool2d(3, stride=1, padding=1)]
    made = VGG(*modules).to(memory_format=torch.channels_last)  # convolves up to three times as fast
    initialise(made)
    return made


def _centred_pool(stride: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=stride, padding=1)


def _normalised_together(norm: nn.BatchNorm2d, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """BatchNorm of maps (B, C, h, w) of several sizes, with one mean and variance per channel over all of them."""
    pixels = [own.transpose(0, 1).flatten(1) for own in maps]  # (C, B h w)
    parts = norm(torch.cat(pixels, dim=1)[None, :, :, None])[0, :, :, 0].split([len(own[0]) for own in pixels], dim=1)
    shaped = (part.unflatten(1, (len(own), *own.shape[2:])) for part, own in zip(parts, maps, strict=True))
    return [part.transpose(0, 1).contiguous(memory_format=torch.channels_last) for part in shaped]
