"""EM-Adapt: Papandreou, Chen, Murphy, Yuille: Weakly- and Semi-Supervised Learning of a DCNN, ICCV 2015."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

BACKGROUND, FOREGROUND = 0.4, 0.2  # the least share of a photo that the background, and each of its classes, gets
ROUNDS = 5  # of adapting one bias after the other


@torch.no_grad()
def adaptive_labels(
    logits: torch.Tensor, present: torch.Tensor, background: float = BACKGROUND, foreground: float = FOREGROUND
) -> torch.Tensor:
    """The E-step with adaptive biases (their Sec. 3.2): the best class of every cell, among the photo's own.

    A bias is added to a class's scores, just so large that the class is the best of as many cells as it must have.
    Biases are raised one after the other, the classes and then the background, in five rounds, since each takes cells
    from the others: with shares that add up to more than 1 the last one, the background, has its own. None is lowered.

    Arguments:
        logits: (B, C, h, w).
        present: (B, C) bool, the background (channel 0) included.
        background, foreground: the least shares.
    Returns (B, h, w) int64. Costs some 10 B C h w for each class of a photo.
    """
    labels = torch.empty(len(logits), *logits.shape[2:], dtype=torch.int64, device=logits.device)
    for out, scores, own in zip(labels, logits.flatten(2), present, strict=True):
        classes = own.nonzero()[:, 0]
        biased = scores[classes].clone()
        shares = [background if name == 0 else foreground for name in classes.tolist()]
        for _ in range(ROUNDS if len(classes) > 1 else 0):
            for row in [*range(1, len(classes)), 0]:
                others = torch.cat([biased[:row], biased[row + 1 :]]).amax(dim=0)
                needed = max(1, math.ceil(shares[row] * biased.shape[1]))
                lead = (biased[row] - others).sort(descending=True).values[needed - 1]
                if lead <= 0:
                    biased[row] -= lead - 1e-4 * (1 + lead.abs())  # a little more, to win where it would tie
        out.copy_(classes[biased.argmax(dim=0)].view_as(out))
    return labels


def em_adapt_loss(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """The M-step: cross-entropy with the E-step's labels, mean over cells. Arguments as `adaptive_labels`."""
    return functional.cross_entropy(logits, adaptive_labels(logits, present))
