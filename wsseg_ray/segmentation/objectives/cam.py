"""CAM: Zhou, Khosla, Lapedriza, Oliva, Torralba: Learning Deep Features for Discriminative Localization, CVPR 2016."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

BACKGROUND = 0.2  # their Sec. 3.2: a class covers the pixels whose value is above 20 % of the map's maximum


def cam_loss(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of each class after global average pooling, mean over photos and classes.

    The last layer is linear, so a class's logits on the cells are its activation map (their Eq. 2). The background's
    channel is not trained.

    Arguments:
        logits: (B, C, h, w).
        present: (B, C) bool.
    """
    scores = logits[:, 1:].mean(dim=(2, 3))
    return functional.binary_cross_entropy_with_logits(scores, present[:, 1:].to(scores))


def activation_probabilities(maps: torch.Tensor, labels: Sequence[int], background: float = BACKGROUND) -> torch.Tensor:
    """Class activation maps as a distribution over the photo's labels and the background.

    Negative values of a map become 0, and the map is divided by its maximum in the photo. The background is constant.

    Arguments:
        maps: (C, H, W) logits, channel 0 is not read.
        labels: the channels of the photo's labels.
        background: a class is more probable than the background above this share of its map's maximum.
    Returns (C, H, W); 0 for classes that are not in the photo.
    """
    found = torch.zeros_like(maps)
    found[0] = background
    for label in labels:
        activation = maps[label].clamp(min=0)
        found[label] = activation / activation.max().clamp(min=1e-6)
    return found / found.sum(dim=0)
