"""Segmentation heads: the layers between a backbone's feature maps and the logits of each cell.

`HEADS` lists the variants. A variant (`Head`) holds the facts that are needed before a network is built, so nothing
here imports torch; its `build` makes the module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsseg_ray.backbones import Backbone
from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Head:
    """A variant.

    Arguments:
        name: its name in `HEADS`.
        build: makes the module from the backbone, the channels of each of its levels, and the channels of the output
            (0 is background). Weights are random, from torch's global generator. The module maps the maps of `levels`,
            a dict of (B, C, h, w), to logits (B, classes, h, w) on the cells of `grid`. Parameters in its
            `classifier` learn ten times as fast. Its optional `convert_fc` turns VGG-16's fc6 and fc7 (weights and
            biases) into some of its parameters, by name.
        levels: the backbone's levels that the head needs.
        grid: the level whose cells the logits have.
    """

    name: str
    build: Callable[[Backbone, Mapping[str, int], int], nn.Module]
    levels: tuple[str, ...] = ("out",)
    grid: str = "out"


HEADS: Registry[Head] = Registry(
    "segmentation head",
    {
        "largefov": "wsseg_ray.segmentation.heads.largefov:LARGEFOV",
        "linear": "wsseg_ray.segmentation.heads.linear:LINEAR",
        "mlp": "wsseg_ray.segmentation.heads.mlp:MLP",
        "aspp": "wsseg_ray.segmentation.heads.aspp:ASPP",
        "decoder": "wsseg_ray.segmentation.heads.decoder:DECODER",
        "deeplabv3": "wsseg_ray.segmentation.heads.deeplabv3:DEEPLABV3",
        "fcn": "wsseg_ray.segmentation.heads.fcn:FCN",
        "lraspp": "wsseg_ray.segmentation.heads.lraspp:LRASPP",
    },
    contract=Head,
)
