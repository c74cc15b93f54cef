"""CCNN: Pathak, Kraehenbuehl, Darrell: Constrained Convolutional Neural Networks, ICCV 2015."""

from __future__ import annotations

import torch
from torch.nn import functional

FOREGROUND = 0.05  # smallest share of a photo for each of its classes
BACKGROUND = (0.3, 0.7)  # smallest and largest share of the background
TOLERANCE = 1e-3  # of a share
SWEEPS = 1000  # at most, over the classes; a photo that needs more than 20 has logits that differ by hundreds
STEPS = 60  # at most, in the search for one weight
FAR = 1e6  # stands for an infinite difference of logits


@torch.no_grad()
def constrained_distribution(
    logits: torch.Tensor,
    present: torch.Tensor,
    foreground: float = FOREGROUND,
    background: tuple[float, float] = BACKGROUND,
) -> torch.Tensor:
    """The latent distribution P that meets the photo's constraints and is nearest, in KL, to the network's own.

    Absent classes get probability 0. Each class of the photo gets at least the share `foreground` of the cells, in
    expectation, and the background a share between its two bounds. If the lower bounds of a photo's classes add up to
    more than 1, they are divided by their sum. With a weight `lambda_l` for every class, positive for a lower and
    negative for an upper bound, the optimum is `p_i(l) ~ exp(f_i(l) + lambda_l)` (their Eq. 5); lambda maximises (Eq.
    6)

        sum over l of lambda_l b_l - mean over i of log sum over l of exp(f_i(l) + lambda_l)

    the dual, which is concave. It is maximised exactly in one weight after the other, then in a number that is added to
    all weights. The share of class l grows with lambda_l. So the best lambda_l is 0 if the share at 0 lies between its
    bounds; otherwise it is the lambda_l at which the share equals the violated bound.

    Arguments:
        logits: (B, C, h, w), f; differences between classes may be a thousand and more.
        present: (B, C) bool, the background (channel 0) included.
        foreground: a share; background: two shares.
    Returns (B, C, h, w), always a distribution. Bounds hold to 0.1 % of the photo, but a background without any other
    class gets all cells. Costs a softmax over all C channels. Per sweep, for photos of K classes with the background:
    K + 1 softmaxes over K channels and 2 K sigmoids of one channel, up to 15 K where bounds are active. Photos of up to
    four classes need 1 to 7 sweeps, photos of twelve classes up to 20.
    """
    scores = logits.flatten(2).masked_fill(~present[:, :, None], -torch.inf)
    # Present classes first, so that nothing is computed for classes that are in no photo of the batch.
    order = present.int().argsort(dim=1, descending=True, stable=True)[:, : int(present.sum(dim=1).max())]
    held = present.gather(1, order)
    least = torch.where(order == 0, background[0], foreground).masked_fill(~held, 0)
    least = least / least.sum(dim=1, keepdim=True).clamp(min=1)
    most = torch.where(order == 0, background[1], 1.0).masked_fill(~held | (held.sum(dim=1, keepdim=True) == 1), 1)
    own = scores.gather(1, order[:, :, None].expand(-1, -1, scores.shape[2]))
    weight = torch.zeros_like(scores[:, :, 0]).scatter(1, order, _weights(own, held, least, most))
    return (scores + weight[:, :, None]).softmax(dim=1).view_as(logits)


def _weights(scores: torch.Tensor, held: torch.Tensor, least: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """The weights (B, K) that maximise the dual of scores (B, K, n), -inf where `held` (B, K) is false."""
    weight = torch.zeros_like(least)
    for _ in range(SWEEPS):
        for label in range(weight.shape[1]):
            rivals = scores + weight[:, :, None]
            rivals[:, label] = -torch.inf
            odds = (scores[:, label] - rivals.logsumexp(dim=1)).clamp(-FAR, FAR).masked_fill(~held[:, label, None], 0)
            free = odds.sigmoid().mean(dim=1)
            share = free.clamp(least[:, label], most[:, label])
            found = _shift(odds, share, torch.where(share == free, 0, weight[:, label]))
            weight[:, label] = torch.where(share == free, 0, found)
        weight = _shifted(weight, held, least, most)
        share = (scores + weight[:, :, None]).softmax(dim=1).mean(dim=2)
        # At the optimum a class's share is its lower bound if its weight is positive, its upper bound if negative.
        wanted = torch.where(weight > 0, least, torch.where(weight < 0, most, share.clamp(least, most)))
        if not (share - wanted).abs().max() > TOLERANCE:  # NaN ends it too
            break
    return weight


def _shifted(weight: torch.Tensor, held: torch.Tensor, least: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """The weights (B, K) plus, per photo, the number that maximises the dual when it is added to all weights.

    It changes no share. Without it, two weights that should both decrease do so in alternating tiny steps. The dual is
    piecewise linear in this number, with corners where a weight becomes 0, so the maximum is at a corner.
    """
    beyond = weight[:, :, None] - weight[:, None, :]  # (B, K, corners)
    gains = least[:, :, None] * beyond.clamp(min=0) + most[:, :, None] * beyond.clamp(max=0)
    corner = (gains.masked_fill(~held[:, :, None], 0).sum(dim=1) + weight).argmax(dim=1, keepdim=True)
    return (weight - weight.gather(1, corner)).masked_fill(~held, 0)


def _shift(odds: torch.Tensor, share: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """The t (B,) with `mean of sigmoid(odds + t) = share`, for log odds (B, n): by Newton's method and bisection.

    Newton's method runs on the logit of the mean, which is linear where all odds are equal. At each end of the first
    interval all cells lie on one side of the share, so t lies between the ends, for any odds.
    """
    goal = share.logit(eps=1e-6)
    low, high = goal - odds.amax(dim=1), goal - odds.amin(dim=1)
    shift = start.clamp(low, high)
    for _ in range(STEPS):
        cells = (odds + shift[:, None]).sigmoid()
        now = cells.mean(dim=1)
        if (now - share).abs().max() < TOLERANCE / 10:
            break
        low, high = torch.where(now < share, shift, low), torch.where(now > share, shift, high)
        slope = (cells * (1 - cells)).mean(dim=1) / (now * (1 - now))
        step = shift - (now.logit() - goal) / slope
        shift = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return shift


def ccnn_loss(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the constrained distribution, mean over cells. Arguments: see `constrained_distribution`."""
    target = constrained_distribution(logits, present)
    return -(target * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()
