"""Backbones: the layers that turn photos into feature maps. The classifier of regions and the segmentation networks
each put a head on one.

`BACKBONES` names the variants. A variant (`Backbone`) says what is known before a network is built, so nothing here
imports torch; its `build` makes the module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsseg_ray.backbones.named import NamedWeights
from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    from wsseg_ray.backbones.base import BaseBackbone

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB, of photos in 0..1
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A variant: what is known of a backbone before it is built, and which sizes of the heads suit it.

    Arguments:
        name: its name in `BACKBONES`.
        build: makes the module, at random, drawn from torch's global generator. Its argument `dense` says what for.
            False: for regions; cells of `stride` pixels lie side by side, the first one in the photo's corner. True:
            for a segmentation head; each level has the stride of `dense_strides`, see `centred`. Raises ValueError
            where there is no such form.
        stride: photo pixels per cell of `out`, for regions; None: it does not serve regions.
        dense_strides: photo pixels from cell to cell of each level, for segmentation; empty: it does not serve that.
        centred: for segmentation, True: cell (i, j) of a level is centred on pixel (stride i, stride j). False: cells
            lie side by side and cover the photo, as for regions: both forms are one, so a segmentation head can read
            the maps that HCP reads.
        mean, std: what photos in 0..1 are normalised by, RGB.
        weights: weights that a recipe can name, the default first; empty: there are none but the user's files.
        has_fc: whether those of ImageNet have VGG-16's fc6 and fc7, which heads can take over.
        conv_layers: how many layers can be frozen one after the other; None: only none or all of them.
        hidden: width of fc6 and fc7 of the classifier of regions.
        dropout: behind each fully connected layer, of `largefov` too.
        region_cells: the height and width of the map `out` for regions, in cells, of a photo of (height, width) pixels.
            So regions are divided among cells before a GPU sees the photo. None: not known before.
        grid: cells a side of a pooled box.
        crop: pixels a side of a warped box.
        dense_hidden, dense_dilation: width and dilation of `largefov`'s fc6.
    """

    name: str
    build: Callable[[bool], BaseBackbone]
    stride: int | None
    dense_strides: Mapping[str, int]
    centred: bool = True
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    weights: Mapping[str, NamedWeights] = field(default_factory=dict)
    has_fc: bool = False
    conv_layers: int | None = None
    hidden: int = 1024
    dropout: float = 0.5
    region_cells: Callable[[int, int], tuple[int, int]] | None = None
    grid: int = 7
    crop: int = 224
    dense_hidden: int = 1024
    dense_dilation: int = 12

    @property
    def dense_stride(self) -> int:
        """Photo pixels from cell to cell of `out`, for segmentation."""
        return self.dense_strides["out"]


BACKBONES: Registry[Backbone] = Registry(
    "backbone",
    {
        "vgg16": "wsseg_ray.backbones.vgg16:VGG16",
        "small": "wsseg_ray.backbones.small:SMALL",
        "torchvision:": "wsseg_ray.backbones.torchvision:backbone",
        "timm:": "wsseg_ray.backbones.timm:backbone",
    },
    contract=Backbone,
)
