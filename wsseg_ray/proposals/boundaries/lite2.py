"""The boundaries that EfficientNet-Lite2 finds in the photo at twice its size: all its levels, of strides 1 to 16.

At the photo's own size, whose finest level has stride 2, it found them less well (docs/proposals.md).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from wsseg_ray.backbones.base import BaseBackbone
from wsseg_ray.backbones.timm_layers import TimmBackbone, unit_mean_square
from wsseg_ray.proposals.boundaries import BoundaryFinder

SCALE = 2
STRIDE = 32  # of the last level


def levels(backbone: BaseBackbone, photo: torch.Tensor) -> list[torch.Tensor]:
    """The five levels, 560 channels, each cell divided by its root mean square.

    Cell (i, j) of a level is centred on pixel (stride i, stride j). So the photo is resized to whole steps of the
    largest stride and one pixel more, its corner pixels kept: then the corner cells of all levels are centred on them.
    """
    assert isinstance(backbone, TimmBackbone)
    height, width = (max(1, round(SCALE * side / STRIDE)) * STRIDE + 1 for side in photo.shape[2:])
    larger = functional.interpolate(photo, (height, width), mode="bilinear", align_corners=True)
    maps = backbone.model.forward_intermediates(larger, intermediates_only=True, output_fmt="NCHW")
    return [unit_mean_square(own) for own in maps]


LITE2 = BoundaryFinder("timm:tf_efficientnet_lite2@0,1,2,3,4", levels, centred=True, learned="lite2")
