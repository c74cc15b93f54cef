"""Losses that need only image-level labels: the rivals of the paper's Table 4, and CAM's classifier.

Each is a function of the network's logits (B, C, h, w), where channel 0 is the background, and of the classes that are
present in each photo, (B, C) bool, where the background is always True. It returns a scalar, the mean over photos.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import torch

    from wsseg_ray.proposals.regions import RegionProposals

OBJECTIVES: Registry[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = Registry(
    "label-only objective",
    {
        "mil_fcn": "wsseg_ray.segmentation.objectives.mil_fcn:mil_fcn_loss",
        "em_adapt": "wsseg_ray.segmentation.objectives.em_adapt:em_adapt_loss",
        "ccnn": "wsseg_ray.segmentation.objectives.ccnn:ccnn_loss",
        "ilp": "wsseg_ray.segmentation.objectives.ilp:ilp_loss",
        "cam": "wsseg_ray.segmentation.objectives.cam:cam_loss",
    },
)
# How ILP smooths its predictions: `(probabilities (C, H, W), regions) -> (C, H, W)`
SMOOTHERS: Registry[Callable[[np.ndarray, RegionProposals], np.ndarray]] = Registry(
    "smoother",
    {
        "superpixels": "wsseg_ray.segmentation.objectives.ilp:smooth_by_superpixels",
        "boxes": "wsseg_ray.segmentation.objectives.ilp:smooth_by_boxes",
        "regions": "wsseg_ray.segmentation.objectives.ilp:smooth_by_regions",
    },
)
