"""A small decoder on two levels (as in DeepLabv3+, Chen et al., ECCV 2018): it draws at half the stride."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsseg_ray.backbones import Backbone
from wsseg_ray.segmentation.heads import Head

if TYPE_CHECKING:
    from wsseg_ray.segmentation.heads.layers import Decoder


def _build(backbone: Backbone, channels: Mapping[str, int], classes_with_background: int) -> Decoder:
    from wsseg_ray.segmentation.heads.layers import Decoder  # imports torch

    return Decoder(
        channels["low"],
        channels["out"],
        backbone.dense_hidden,
        backbone.dense_dilation,
        backbone.dropout,
        classes_with_background,
    )


DECODER = Head("decoder", _build, levels=("low", "out"), grid="low")
