"""LR-ASPP (Howard et al., ICCV 2019), torchvision's: a light head on two levels of MobileNetV3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsseg_ray.backbones import Backbone
from wsseg_ray.segmentation.heads import Head

if TYPE_CHECKING:
    from wsseg_ray.segmentation.heads.layers import LowAndHigh

WIDTH = 128  # channels between the two layers, torchvision's default


def _build(backbone: Backbone, channels: Mapping[str, int], classes_with_background: int) -> LowAndHigh:
    # Imported here: torchvision takes 1.5 s to import.
    from torchvision.models.segmentation.lraspp import LRASPPHead

    from wsseg_ray.segmentation.heads.layers import LowAndHigh

    return LowAndHigh(LRASPPHead(channels["low"], channels["out"], classes_with_background, WIDTH))


LRASPP = Head("lraspp", _build, levels=("low", "out"), grid="low")
