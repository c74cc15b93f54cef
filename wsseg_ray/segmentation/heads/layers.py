"""The layers of the heads, in a file of their own because it imports torch and the variants do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from wsseg_ray.backbones.base import keep_statistics
from wsseg_ray.backbones.weights import initialise
from wsseg_ray.hcp.dropout import PhotoDropout

LOW_WIDTH = 48  # channels of a finer level beside those of `out`, as in DeepLabv3+


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


class Cells(nn.Module):
    """A classifier that sees each cell alone: hidden layers of 1x1, and the last layer.

    Arguments:
        channels: of the feature map.
        hidden: width of each hidden layer.
        dropout: after each.
        classes_with_background: channels of the output; 0 is background.
    """

    def __init__(self, channels: int, hidden: Sequence[int], dropout: float, classes_with_background: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Conv2d(channels, width, 1), nn.ReLU(inplace=True), PhotoDropout(dropout)]
            channels = width
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(channels, classes_with_background, 1)
        initialise(self.hidden)

    def forward(self, levels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, classes, h, w) of the map `out` (B, C, h, w)."""
        return self.classifier(self.hidden(levels["out"]))


class Surroundings(nn.Module):
    """Each cell with its surroundings: a 1x1 layer makes the map narrow, then 3x3 layers look near, far, and farther.

    Arguments:
        channels: of the feature map.
        width: of all layers.
        dilation: of the farthest layer; the others have a half and a quarter of it, at least 1.
        dropout: after the sum of the layers.
    """

    def __init__(self, channels: int, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(inplace=True))
        dilations = [max(1, dilation // share) for share in (4, 2, 1)]
        self.around = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in dilations)
        self.photo = nn.Conv2d(width, width, 1)
        self.dropout = PhotoDropout(dropout)
        initialise(self)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, width, h, w), not negative, of a map (B, C, h, w)."""
        narrow = self.narrow(maps)
        photo = self.photo(narrow.mean(dim=(2, 3), keepdim=True))
        parts = sum((layer(narrow) for layer in self.around), photo) / (len(self.around) + 1) ** 0.5
        return self.dropout(functional.relu(parts))


class Pyramid(nn.Module):
    """A classifier of cells by their surroundings. Arguments: see `Surroundings`."""

    def __init__(self, channels: int, width: int, dilation: int, dropout: float, classes_with_background: int) -> None:
        super().__init__()
        self.surroundings = Surroundings(channels, width, dilation, dropout)
        self.classifier = nn.Conv2d(width, classes_with_background, 1)

    def forward(self, levels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, classes, h, w) of the map `out` (B, C, h, w)."""
        return self.classifier(self.surroundings(levels["out"]))


class Decoder(nn.Module):
    """A classifier of the cells of `low`, by these and by the surroundings in `out`.

    Arguments: see `Surroundings`; `low` and `out` are the channels of the two levels.
    """

    def __init__(
        self, low: int, out: int, width: int, dilation: int, dropout: float, classes_with_background: int
    ) -> None:
        super().__init__()
        self.surroundings = Surroundings(out, width, dilation, dropout)
        self.low = nn.Sequential(nn.Conv2d(low, LOW_WIDTH, 1), nn.ReLU(inplace=True))
        self.join = nn.Conv2d(width + LOW_WIDTH, width, 3, padding=1)
        self.dropout = PhotoDropout(dropout)
        self.classifier = nn.Conv2d(width, classes_with_background, 1)
        initialise(self.low)
        initialise(self.join)

    def forward(self, levels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, classes, h, w) on the cells of `low`."""
        low = self.low(levels["low"])
        out = functional.interpolate(self.surroundings(levels["out"]), low.shape[2:], mode="bilinear")
        return self.classifier(self.dropout(functional.relu(self.join(torch.cat([low, out], dim=1)))))


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
