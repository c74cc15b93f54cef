"""Losses on the output grid: the soft target of Network_A, Eq. (3)-(4), and the mask of Network_B."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

IGNORE = 255


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Eq. (3)-(4): cross-entropy of the softmax with a distribution over classes in every cell, mean over cells.

    `eta` is 1 / (N h w); cells without a target, which lie outside the photo, are not counted.

    Arguments:
        logits: (B, C, h, w), `f` of Eq. (3).
        targets: (B, C, h, w), not negative; the sum over classes is 1, or 0: the cell is ignored.
    Returns a scalar; 0 where no cell has a target.
    """
    cells = -(targets * functional.log_softmax(logits, dim=1)).sum(dim=1)
    return cells.sum() / (targets.sum(dim=1) > 0).sum().clamp(min=1)


def hard_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of the softmax with one class per cell, mean over cells.

    Arguments:
        logits: (B, C, h, w).
        labels: (B, h, w) int64, classes, or 255: the cell is ignored.
        weights: (C,) by which the cells of each class are multiplied; None: 1.
    Returns a scalar; 0 where all cells are ignored.
    """
    total = functional.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def class_weights(pixels: Sequence[int], power: float) -> torch.Tensor:
    """Weights for `hard_cross_entropy` by which rare classes count more: (n_c / n)^-power, 1 in the mean over pixels.

    Arguments:
        pixels: (C,) n_c, the pixels of each class in the training masks; a class without any is taken for one of one.
        power: 0: all weigh the same; 1: all classes together do.
    Returns (C,) float32.
    """
    counts = torch.tensor(pixels, dtype=torch.float64).clamp(min=1)
    raw = (counts / counts.sum()) ** -power
    return (raw * counts.sum() / (raw * counts).sum()).float()
