"""FCN (Long et al., CVPR 2015), torchvision's: one convolution, and the last layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsseg_ray.backbones import Backbone
from wsseg_ray.segmentation.heads import Head

if TYPE_CHECKING:
    from wsseg_ray.segmentation.heads.layers import TorchvisionHead


def _build(backbone: Backbone, channels: Mapping[str, int], classes_with_background: int) -> TorchvisionHead:
    # Imported here: torchvision takes 1.5 s to import.
    from torchvision.models.segmentation.fcn import FCNHead

    from wsseg_ray.segmentation.heads.layers import TorchvisionHead

    return TorchvisionHead(FCNHead(channels["out"], classes_with_background))


FCN = Head("fcn", _build)
