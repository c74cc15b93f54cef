"""CCNN: Pathak, Kraehenbuehl, Darrell: Constrained Convolutional Neural Networks, ICCV 2015."""

from __future__ import annotations

import torch
from torch.nn import functional

FOREGROUND = 0.05  # the least share of a photo for each of its classes
BACKGROUND = (0.3, 0.7)  # the least and the largest share of the background
TOLERANCE = 1e-3  # of a share
SWEEPS = 200  # at most, over the classes
STEPS = 60  # at most, of the search for one weight
FAR = 1e6  # logits: what stands for an infinite distance between two classes


@torch.no_grad()
def constrained_distribution(
    logits: torch.Tensor,
    present: torch.Tensor,
    foreground: float = FOREGROUND,
    background: tuple[float, float] = BACKGROUND,
) -> torch.Tensor:
    """The latent distribution P nearest to the network's own, in KL, that keeps the photo's constraints.

    Absent classes get nothing; each class of the photo at least `foreground` of its cells, in expectation, and the
    background between its two bounds. Where a photo has so many classes that its lower bounds add up to more than 1,
    they are divided by their sum. With a weight `lambda_l` for every class, positive for a lower and negative for
    an upper bound, the optimum is `p_i(l) ~ exp(f_i(l) + lambda_l)` (their Eq. 5), and lambda maximises (Eq. 6)

        sum over l of lambda_l b_l - mean over i of log sum over l of exp(f_i(l) + lambda_l)

    the dual, which is concave. It is maximised exactly in one weight after the other, and then in what is added to all
    weights at once. The share of class l grows with lambda_l, so the best lambda_l is 0 where the share then lies
    between its bounds, and otherwise the one at which the share equals the bound that it missed.

    Arguments:
        logits: (B, C, h, w), f; gaps between classes of a thousand and more do no harm.
        present: (B, C) bool, the background (channel 0) included.
        foreground: a share; background: two shares.
    Returns (B, C, h, w), always a distribution. Bounds hold to 0.1 % of the photo, but a background without any other
    class has everything. Costs a softmax over all C channels, and per sweep, for photos of K classes with the
    background, K + 1 softmaxes over K channels and, of one channel, 2 K sigmoids or up to 15 K where bounds bind.
    Photos of up to four classes need 1 to 7 sweeps, those of twelve up to 20.
    """
    scores = logits.flatten(2).masked_fill(~present[:, :, None], -torch.inf)
    # Present classes first, so that nothing is computed for the channels that no photo of the batch has.
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
        # At the optimum a positive weight's share is its lower bound, a negative one's its upper bound.
        wanted = torch.where(weight > 0, least, torch.where(weight < 0, most, share.clamp(least, most)))
        if not (share - wanted).abs().max() > TOLERANCE:  # NaN ends it too
            break
    return weight


def _shifted(weight: torch.Tensor, held: torch.Tensor, least: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """The weights (B, K) plus what maximises the dual if it is added to all weights of a photo.

    It changes no share, and without it two weights that should both fall follow each other down in tiny steps. The dual
    is piecewise linear in it with corners where a weight becomes 0, so the best of these is the best of all.
    """
    beyond = weight[:, :, None] - weight[:, None, :]  # (B, K, corners)
    gains = least[:, :, None] * beyond.clamp(min=0) + most[:, :, None] * beyond.clamp(max=0)
    corner = (gains.masked_fill(~held[:, :, None], 0).sum(dim=1) + weight).argmax(dim=1, keepdim=True)
    return (weight - weight.gather(1, corner)).masked_fill(~held, 0)


def _shift(odds: torch.Tensor, share: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """The t (B,) with `mean of sigmoid(odds + t) = share`, for log odds (B, n): Newton's steps, halved intervals.

    Newton's steps go along the logit of the mean, which is a line where all odds are equal. At the ends of the first
    interval all cells lie on one side of the share, so t lies between them, however far apart the odds are.
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
    """Cross-entropy with the constrained distribution, mean over cells. Arguments as `constrained_distribution`."""
    target = constrained_distribution(logits, present)
    return -(target * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()
