"""VGG-16 (Simonyan and Zisserman, ICLR 2015), the paper's backbone; for segmentation as DeepLab-LargeFOV uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsseg_ray.backbones import Backbone
from wsseg_ray.backbones.named import torchvision_weights

if TYPE_CHECKING:
    from wsseg_ray.backbones.vgg import VGG, Layers

LAYERS: Layers = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)


def _build(dense: bool) -> VGG:
    from wsseg_ray.backbones.vgg import conv_layers  # imports torch

    return conv_layers(LAYERS, dense_stride=8 if dense else None, dense_tail=True)


VGG16 = Backbone(
    name="vgg16",
    build=_build,
    stride=16,
    dense_strides={"out": 8},
    weights={"imagenet": torchvision_weights("vgg16")},
    has_fc=True,
    conv_layers=13,
    hidden=4096,
    dropout=0.5,
    region_cells=lambda height, width: (height // 16, width // 16),
    grid=7,
    crop=224,
    dense_hidden=1024,
    dense_dilation=12,
)
