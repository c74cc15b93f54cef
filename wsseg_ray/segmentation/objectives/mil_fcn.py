"""MIL-FCN: Pathak, Shelhamer, Long, Darrell: Fully Convolutional Multi-Class Multiple Instance Learning, ICLR 2015."""

from __future__ import annotations

import torch
from torch.nn import functional


def mil_fcn_loss(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Their Eq. (2): for every class in the photo, only the cell with the highest probability is trained.

        loss = -1 / |L| sum over l in L of log p_l(x_l, y_l),  (x_l, y_l) = argmax p_l

    L holds the photo's classes and the background.

    Arguments:
        logits: (B, C, h, w).
        present: (B, C) bool, at least one class per photo.
    Returns the mean over photos. Cells of equal probability share the gradient. Costs B C h w.
    """
    best = functional.log_softmax(logits, dim=1).flatten(2).amax(dim=2)
    return -((best * present).sum(dim=1) / present.sum(dim=1)).mean()
