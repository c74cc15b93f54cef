"""DeepLab-LargeFOV on VGG-16, and the same idea on the small trunk.

A cell (i, j) of the output grid looks at the photo around pixel (stride i, stride j): all layers are centred, and the
pooling windows of 3 with stride 2 start at the first pixel. On photos of stride k + 1 pixels the outer cells lie on the
outer pixels, so maps are resized with align_corners=True, and `targets` cuts the photo into cells the same way.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from wsseg_ray.hcp.dropout import PhotoDropout
from wsseg_ray.hcp.trunk import BACKBONES, conv_layers, initialise


class DeepLabLargeFOV(nn.Module):
    """A fully convolutional classifier of grid cells, with a large field of view by dilation.

    deeplab_largefov: VGG-16, stride 8; conv5 has dilation 2, fc6 is 3x3 with dilation 12, 1,024 wide; 20.5 million
    parameters with 21 classes. deeplab_small: the small trunk, stride 4; fc6 is 3x3 with dilation 2, 128 wide; no
    dropout. Conv layers have the names of the HCP network's, so `load_weights` takes its trunk. Everything starts at
    random, drawn from torch's global generator.

    Arguments:
        classes_with_background: channels of the output; 0 is background.
    """

    def __init__(self, model: Literal["deeplab_largefov", "deeplab_small"], classes_with_background: int) -> None:
        super().__init__()
        backbone = {"deeplab_largefov": "vgg16", "deeplab_small": "small"}[model]
        hidden, dilation, self.stride = {"vgg16": (1024, 12, 8), "small": (128, 2, 4)}[backbone]
        self.trunk = conv_layers(backbone)
        stride = 1
        for index, layer in enumerate(self.trunk):
            if isinstance(layer, nn.MaxPool2d):
                stride *= 2
                self.trunk[index] = nn.MaxPool2d(3, stride=2 if stride <= self.stride else 1, padding=1)
            elif isinstance(layer, nn.Conv2d) and stride > self.stride:
                layer.dilation = layer.padding = (2, 2)
        if backbone == "vgg16":
            self.trunk.append(nn.MaxPool2d(3, stride=1, padding=1)).append(nn.AvgPool2d(3, stride=1, padding=1))
        self.fc6 = nn.Conv2d(self.trunk.channels, hidden, 3, padding=dilation, dilation=dilation)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.dropout6, self.dropout7 = (PhotoDropout(BACKBONES[backbone].dropout) for _ in range(2))
        self.classifier = nn.Conv2d(hidden, classes_with_background, 1)
        initialise(self.fc6)
        initialise(self.fc7)

    def features(self, photos: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps `out` (B, C, h, w) of normalised photos (B, 3, H, W): all conv layers that can be frozen."""
        return {"out": self.trunk(photos)}

    def head(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, classes, h, w) of feature maps: fc6, fc7 and the last layer."""
        hidden = self.dropout6(functional.relu(self.fc6(features["out"])))
        return self.classifier(self.dropout7(functional.relu(self.fc7(hidden))))

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, h, w) of normalised photos (B, 3, H, W)."""
        return self.head(self.features(photos))

    def convert_fc(
        self, fc6_weight: torch.Tensor, fc6_bias: torch.Tensor, fc7_weight: torch.Tensor, fc7_bias: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """VGG-16's fc6 (4096, 25088) and fc7 (4096, 4096), decimated as DeepLab does.

        Every 3rd of 7x7 positions and every 4th of 4,096 channels are kept.
        """
        return {
            "fc6.weight": fc6_weight.unflatten(1, (-1, 7, 7))[::4, :, ::3, ::3],
            "fc6.bias": fc6_bias[::4],
            "fc7.weight": fc7_weight[::4, ::4, None, None],
            "fc7.bias": fc7_bias[::4],
        }


def upsample(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Maps on the output grid (B, C, h, w), bilinearly at a photo's pixels: (B, C, height, width)."""
    return functional.interpolate(maps, (height, width), mode="bilinear", align_corners=True)


def parameter_groups(
    network: nn.Module, learning_rate: float, random_layers: Collection[str], weight_decay: float = 5e-4
) -> list[dict[str, Any]]:
    """SGD's four groups: loaded weights and biases, then those of the last layer and of all that starts at random.

    The last two learn ten times as fast; biases twice as fast as weights and without decay. No frozen parameters.

    Arguments:
        random_layers: names of parameters, the second answer of `load_weights`.
    """
    groups = [
        {"params": [], "lr": rate * (2 if bias else 1), "weight_decay": 0.0 if bias else weight_decay}
        for rate in (learning_rate, 10 * learning_rate)
        for bias in (False, True)
    ]
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            fast = name.startswith("classifier.") or name in random_layers
            groups[2 * fast + name.endswith(".bias")]["params"].append(parameter)
    return groups
