"""The segmentation networks by name: DeepLab-LargeFOV, its small sister, and torchvision's.

A network maps normalised photos (B, 3, H, W) to logits (B, classes, h, w) on a grid whose cell (i, j) looks at the
photo around pixel (stride i, stride j); all are trained by the same losses on the same targets. `trunk` is what weights
are for and what can be frozen, `features` its answer, `head` the rest.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from wsseg_ray.hcp import trunk
from wsseg_ray.hcp.dropout import dropouts_by_photo
from wsseg_ray.segmentation.deeplab import DeepLabLargeFOV

STRIDES = {"deeplab_small": 4, "deeplabv3_mobilenet_v3_large": 16}  # of the others: 8


class TorchvisionSegmenter(nn.Module):
    """A network of `torchvision.models.segmentation`, without its last upsampling and its auxiliary loss.

    BatchNorm keeps the statistics of its weights in training, as is usual for batches of a few photos; so a batch may
    be dealt out over workers. Everything starts at random, drawn from torch's global generator.

    Arguments:
        model: torchvision's name.
        classes_with_background: channels of the output; 0 is background.
    """

    def __init__(self, model: str, classes_with_background: int) -> None:
        super().__init__()
        from torchvision.models import get_model  # with all its models, a second and a half: here alone

        network = get_model(model, weights=None, weights_backbone=None, num_classes=classes_with_background)
        self.stride = STRIDES.get(model, 8)
        self.imagenet = model.split("_", 1)[1]  # torchvision's name of the classifier with the same trunk
        self.trunk, self.classifier = network.backbone, network.classifier
        dropouts_by_photo(self)

    def train(self, mode: bool = True) -> TorchvisionSegmenter:
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self

    def features(self, photos: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps of normalised photos (B, 3, H, W), by torchvision's names of the levels."""
        return self.trunk(photos)

    def head(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, classes, h, w) of feature maps."""
        return self.classifier(features if "low" in features else features["out"])

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, h, w) of normalised photos (B, 3, H, W)."""
        return self.head(self.features(photos))


SegmentationNetwork = DeepLabLargeFOV | TorchvisionSegmenter


def create(model: str, classes_with_background: int) -> SegmentationNetwork:
    """A network by the name that it has in `recipe.MODELS`, at random."""
    kind = DeepLabLargeFOV if model in ("deeplab_largefov", "deeplab_small") else TorchvisionSegmenter
    return kind(model, classes_with_background)


def grid_size(model: str, pixels: int) -> int:
    """Cells of a network's output along a side of so many pixels: DeepLab-LargeFOV makes 41 of 321."""
    return -(-pixels // STRIDES.get(model, 8))


def whole_cells(model: str, pixels: int) -> int:
    """So many pixels a side, or a few more: stride k + 1, where the outer cells lie on the outer pixels."""
    stride = STRIDES.get(model, 8)
    return pixels + -(pixels - 1) % stride


def freeze(network: SegmentationNetwork, count: Literal["none", "all"] | int) -> None:
    """Train the first `count` conv layers of the trunk no further; of torchvision's trunks none or all can be frozen.

    Raises ValueError where the trunk cannot be frozen so.
    """
    if isinstance(network.trunk, trunk.Trunk):
        trunk.freeze(network.trunk, count)
    elif count in ("none", "all"):
        network.trunk.requires_grad_(count == "none")
    else:
        raise ValueError(f"of torchvision's networks none or all layers of the trunk are frozen, not {count}")
