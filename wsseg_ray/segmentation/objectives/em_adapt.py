"""EM-Adapt: Papandreou, Chen, Murphy, Yuille: Weakly- and Semi-Supervised Learning of a DCNN, ICCV 2015."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

BACKGROUND, FOREGROUND = 0.4, 0.2  # smallest share of a photo for the background and for each of its classes
ROUNDS = 5  # in which the biases are adapted one after the other


@torch.no_grad()
def adaptive_labels(
    logits: torch.Tensor, present: torch.Tensor, background: float = BACKGROUND, foreground: float = FOREGROUND
) -> torch.Tensor:
    """The E-step with adaptive biases (their Sec. 3.2): the best class of every cell, among the photo's classes.

    A bias is added to a class's scores, just large enough that the class is the best one in its smallest share of the
    cells. Biases are increased one after the other, the classes first and then the background, and never decreased.
    Each class takes cells from the others, so this is done five times. If the shares add up to more than 1, the
    background, which is last, still gets its share.

    Arguments:
        logits: (B, C, h, w).
        present: (B, C) bool, the background (channel 0) included.
        background, foreground: the smallest shares.
    Returns (B, h, w) int64. Costs about 10 B C h w per class of a photo.
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
                    biased[row] -= lead - 1e-4 * (1 + lead.abs())  # a little more, so that no tie is left
        out.copy_(classes[biased.argmax(dim=0)].view_as(out))
    return labels


def em_adapt_loss(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """The M-step: cross-entropy with the E-step's labels, mean over cells. Arguments: see `adaptive_labels`."""
    return functional.cross_entropy(logits, adaptive_labels(logits, present))
