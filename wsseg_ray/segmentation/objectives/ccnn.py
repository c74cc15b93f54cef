"""CCNN: Pathak, Kraehenbuehl, Darrell: Constrained Convolutional Neural Networks, ICCV 2015."""

from __future__ import annotations

import torch
from torch.nn import functional

FOREGROUND = 0.05  # the least share of a photo for each of its classes
BACKGROUND = (0.3, 0.7)  # the least and the largest share of the background
STEPS, RATE = 200, 2.0  # of ascent on the dual; an iteration costs a softmax


@torch.no_grad()
def constrained_distribution(
    logits: torch.Tensor,
    present: torch.Tensor,
    foreground: float = FOREGROUND,
    background: tuple[float, float] = BACKGROUND,
) -> torch.Tensor:
    """The latent distribution P nearest to the network's own, in KL, that keeps the photo's constraints.

    Absent classes get nothing; each class of the photo at least `foreground` of its cells, in expectation, and the
    background between its two bounds. With a weight `lambda_l` for every class, positive for a lower and negative for
    an upper bound, the optimum is `p_i(l) ~ exp(f_i(l) + lambda_l)` (their Eq. 5), and lambda maximises (Eq. 6)

        sum over l of lambda_l b_l - mean over i of log sum over l of exp(f_i(l) + lambda_l)

    the dual, which is concave; it is climbed by projected gradient steps, whose gradient is bound minus share.

    Arguments:
        logits: (B, C, h, w), f.
        present: (B, C) bool, the background (channel 0) included.
        foreground: a share; background: two shares.
    Returns (B, C, h, w). Bounds hold to 1 % where they can be met. Costs 200 softmaxes.
    """
    scores = logits.flatten(2).masked_fill(~present[:, :, None], -torch.inf)
    least = torch.full_like(scores[:, :, 0], foreground)
    least[:, 0] = background[0]
    above = torch.zeros_like(least)  # weights of the lower bounds
    below = torch.zeros_like(least[:, 0])  # weight of the background's upper bound
    for _ in range(STEPS):
        weight = above.clone()
        weight[:, 0] -= below
        share = (scores + weight[:, :, None]).softmax(dim=1).mean(dim=2)
        above = (above + RATE * (least - share)).clamp(min=0)
        below = (below + RATE * (share[:, 0] - background[1])).clamp(min=0)
    weight = above
    weight[:, 0] -= below
    return (scores + weight[:, :, None]).softmax(dim=1).view_as(logits)


def ccnn_loss(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the constrained distribution, mean over cells. Arguments as `constrained_distribution`."""
    target = constrained_distribution(logits, present)
    return -(target * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()
