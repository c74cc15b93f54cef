"""Atrous spatial pyramid pooling (Chen et al., 2017), light: each cell, its surroundings near and far, the photo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsseg_ray.backbones import Backbone
from wsseg_ray.segmentation.heads import Head

if TYPE_CHECKING:
    from wsseg_ray.segmentation.heads.layers import Pyramid


def _build(backbone: Backbone, channels: Mapping[str, int], classes_with_background: int) -> Pyramid:
    from wsseg_ray.segmentation.heads.layers import Pyramid  # imports torch

    return Pyramid(
        channels["out"], backbone.dense_hidden, backbone.dense_dilation, backbone.dropout, classes_with_background
    )


ASPP = Head("aspp", _build)
