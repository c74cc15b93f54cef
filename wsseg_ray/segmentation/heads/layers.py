"""The layers of the heads, in a file of their own because it imports torch and the variants do not."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from wsseg_ray.backbones.base import keep_statistics
from wsseg_ray.backbones.weights import initialise
from wsseg_ray.hcp.dropout import PhotoDropout


class LargeFOV(nn.Module):
    """DeepLab-LargeFOV's head: a classifier of cells, with a large field of view by dilation.

    fc6 is 3x3 and dilated, fc7 and the last layer are 1x1. On VGG-16 fc6 has dilation 12 and is 1,024 wide: with the
    backbone 20.5 million parameters for 21 classes.

    Arguments:
        channels: of the feature map.
        hidden: width of fc6 and fc7.
        dilation: of fc6.
        dropout: after fc6 and fc7.
        classes_with_background: channels of the output; 0 is background.
    """

    def __init__(self, channels: int, hidden: int, dilation: int, dropout: float, classes_with_background: int) -> None:
        super().__init__()
        self.fc6 = nn.Conv2d(channels, hidden, 3, padding=dilation, dilation=dilation)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.dropout6, self.dropout7 = PhotoDropout(dropout), PhotoDropout(dropout)
        self.classifier = nn.Conv2d(hidden, classes_with_background, 1)
        initialise(self.fc6)
        initialise(self.fc7)

    def forward(self, levels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, classes, h, w) of the map `out` (B, C, h, w)."""
        hidden = self.dropout6(functional.relu(self.fc6(levels["out"])))
        return self.classifier(self.dropout7(functional.relu(self.fc7(hidden))))

    def convert_fc(
        self, fc6_weight: torch.Tensor, fc6_bias: torch.Tensor, fc7_weight: torch.Tensor, fc7_bias: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """VGG-16's fc6 (4096, 25088) and fc7 (4096, 4096), reduced as in DeepLab.

        Every 3rd of 7x7 positions and every 4th of 4,096 channels are kept.
        """
        return {
            "fc6.weight": fc6_weight.unflatten(1, (-1, 7, 7))[::4, :, ::3, ::3],
            "fc6.bias": fc6_bias[::4],
            "fc7.weight": fc7_weight[::4, ::4, None, None],
            "fc7.bias": fc7_bias[::4],
        }


class TorchvisionHead(nn.Module):
    """A head of torchvision's segmentation networks on the map `out`.

    BatchNorm keeps its statistics in training, as is usual for batches of a few photos. So a batch can be split among
    workers.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, levels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, classes, h, w)."""
        return self.classifier(levels["out"])

    def train(self, mode: bool = True) -> TorchvisionHead:
        super().train(mode)
        keep_statistics(self)
        return self


class LowAndHigh(TorchvisionHead):
    """A head of torchvision's segmentation networks on the two maps `low` and `out`; torchvision calls `out` `high`."""

    def forward(self, levels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, classes, h, w) on the cells of `low`."""
        return self.classifier({"low": levels["low"], "high": levels["out"]})
