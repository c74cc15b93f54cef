"""CAM: Zhou, Khosla, Lapedriza, Oliva, Torralba: Learning Deep Features for Discriminative Localization, CVPR 2016."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

BACKGROUND = 0.2  # their Sec. 3.2: a class is where its map is above 20 % of its maximum


def cam_loss(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of every class by itself, after global average pooling: the mean over photos and classes.

    The last layer is linear, so a class's logit on a cell is its activation map (their Eq. 2). The background's
    channel learns nothing.

    Arguments:
        logits: (B, C, h, w).
        present: (B, C) bool.
    """
    scores = logits[:, 1:].mean(dim=(2, 3))
    return functional.binary_cross_entropy_with_logits(scores, present[:, 1:].to(scores))


def activation_probabilities(maps: torch.Tensor, labels: Sequence[int], background: float = BACKGROUND) -> torch.Tensor:
    """Class activation maps as a distribution whose best class is what they say: a label, or the background.

    Each map is cut off at 0 and divided by its maximum in the photo; the background is constant.

    Arguments:
        maps: (C, H, W) logits, channel 0 is not read.
        labels: the photo's channels.
        background: the share of its maximum that a map must pass.
    Returns (C, H, W); 0 for what the photo does not have.
    """
    found = torch.zeros_like(maps)
    found[0] = background
    for label in labels:
        activation = maps[label].clamp(min=0)
        found[label] = activation / activation.max().clamp(min=1e-6)
    return found / found.sum(dim=0)
