"""HCP's losses: the logits of hypotheses are max-pooled, then compared with the photo's labels ([30])."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional


def label_targets(labels: torch.Tensor) -> torch.Tensor:
    """The label vector divided by its sum, (B, C) float32; a photo without labels gives zeros.

    Arguments:
        labels: (B, C) bool.
    """
    vector = labels.float()
    return vector / vector.sum(dim=1, keepdim=True).clamp(min=1)


def hypothesis_max(logits: torch.Tensor) -> torch.Tensor:
    """Cross-hypothesis max-pooling: (B, H, C) logits of H hypotheses per photo to (B, C).

    Equal maxima share the gradient, so a hypothesis that is repeated to fill H changes nothing.
    """
    return logits.amax(dim=1)


def squared_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[30]'s loss: squared difference of softmax and target, summed over classes, mean over photos.

    Arguments:
        logits: (B, C).
        targets: (B, C), of `label_targets`.
    """
    return (logits.softmax(dim=1) - targets).square().sum(dim=1).mean()


def cross_entropy_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the softmax with the same target, mean over photos. Arguments: see `squared_loss`."""
    return -(targets * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()


def region_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the sigmoid with the known targets, summed over classes, mean over regions.

    The scores of a region do not add up to 1, as a softmax's do: a region may show no class.

    Arguments:
        logits: (n, C), n >= 1.
        targets: (n, C) of `mining.region_targets`: 1, 0, or -1 for unknown.
    """
    loss = functional.binary_cross_entropy_with_logits(logits, targets.clamp(min=0).to(logits), reduction="none")
    return (loss * (targets >= 0)).sum(dim=1).mean()


def binary_cross_entropy_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`region_loss` of photos, for which every target is known. Arguments: see `squared_loss`."""
    return region_loss(logits, (targets > 0).to(torch.int8))


def softmax_scores(logits: torch.Tensor) -> torch.Tensor:
    """The softmax of logits (N, C), float32: the scores of a region add up to 1."""
    return logits.softmax(dim=1, dtype=torch.float32)


def sigmoid_scores(logits: torch.Tensor) -> torch.Tensor:
    """The sigmoid of logits (N, C), float32: each class has an independent score."""
    return logits.float().sigmoid()


@dataclass(frozen=True)
class Loss:
    """A loss, and the scores of a network that was trained with it. `hcp.LOSSES` lists the variants.

    Arguments:
        compare: logits (B, C) and targets (B, C) of `label_targets` to the mean loss over photos.
        scores: logits (N, C) to scores (N, C) in 0..1, float32.
        apart: whether each class is scored independently, so that a region may show no class.
    """

    compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    scores: Callable[[torch.Tensor], torch.Tensor]
    apart: bool = False


SQUARED = Loss(squared_loss, softmax_scores)
CROSS_ENTROPY = Loss(cross_entropy_loss, softmax_scores)
BINARY_CROSS_ENTROPY = Loss(binary_cross_entropy_loss, sigmoid_scores, apart=True)
