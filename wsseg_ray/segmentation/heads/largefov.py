"""DeepLab-LargeFOV (Chen et al., ICLR 2015), the paper's: fc6 and fc7 of VGG-16 as dilated convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsseg_ray.backbones import Backbone
from wsseg_ray.segmentation.heads import Head

if TYPE_CHECKING:
    from wsseg_ray.segmentation.heads.layers import LargeFOV


def _build(backbone: Backbone, channels: Mapping[str, int], classes_with_background: int) -> LargeFOV:
    from wsseg_ray.segmentation.heads.layers import LargeFOV  # imports torch

    return LargeFOV(
        channels["out"], backbone.dense_hidden, backbone.dense_dilation, backbone.dropout, classes_with_background
    )


LARGEFOV = Head("largefov", _build)
