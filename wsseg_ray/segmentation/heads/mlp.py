"""A perceptron with two hidden layers on each cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsseg_ray.backbones import Backbone
from wsseg_ray.segmentation.heads import Head

if TYPE_CHECKING:
    from wsseg_ray.segmentation.heads.layers import Cells


def _build(backbone: Backbone, channels: Mapping[str, int], classes_with_background: int) -> Cells:
    from wsseg_ray.segmentation.heads.layers import Cells  # imports torch

    return Cells(channels["out"], (backbone.dense_hidden,) * 2, backbone.dropout, classes_with_background)


MLP = Head("mlp", _build)
