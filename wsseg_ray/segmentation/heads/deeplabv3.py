"""DeepLabv3 (Chen et al., 2017), torchvision's: dilated convolutions of several rates, and the photo's mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsseg_ray.backbones import Backbone
from wsseg_ray.segmentation.heads import Head

if TYPE_CHECKING:
    from wsseg_ray.segmentation.heads.layers import TorchvisionHead


def _build(backbone: Backbone, channels: Mapping[str, int], classes_with_background: int) -> TorchvisionHead:
    # Imported here: torchvision takes 1.5 s to import.
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    from wsseg_ray.segmentation.heads.layers import TorchvisionHead

    return TorchvisionHead(DeepLabHead(channels["out"], classes_with_background))


DEEPLABV3 = Head("deeplabv3", _build)
