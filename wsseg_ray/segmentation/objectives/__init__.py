"""Losses that ask for image-level labels alone: the rivals of the paper's Table 4, and CAM's classifier.

Each is a function of the network's logits (B, C, h, w), channel 0 the background, and of which channels occur in the
photos, (B, C) bool, the background always; it returns a scalar, the mean over photos.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from wsseg_ray.segmentation.objectives.cam import cam_loss
from wsseg_ray.segmentation.objectives.ccnn import ccnn_loss
from wsseg_ray.segmentation.objectives.em_adapt import em_adapt_loss
from wsseg_ray.segmentation.objectives.ilp import ilp_loss
from wsseg_ray.segmentation.objectives.mil_fcn import mil_fcn_loss

OBJECTIVES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "MIL_FCN": mil_fcn_loss,
    "EM_ADAPT": em_adapt_loss,
    "CCNN": ccnn_loss,
    **dict.fromkeys(("ILP", "ILP_SPPXL", "ILP_BB", "ILP_SEG"), ilp_loss),
    "CAM": cam_loss,
}
