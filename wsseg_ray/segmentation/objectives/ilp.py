"""MIL-ILP: Pinheiro and Collobert: From Image-level to Pixel-level Labeling with Convolutional Networks, CVPR 2015."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from wsseg_ray.proposals.regions import RegionProposals

SHARPNESS = 5.0  # r of Eq. (2): 0 is the mean, infinity the maximum


def log_sum_exp_pool(logits: torch.Tensor, r: float = SHARPNESS) -> torch.Tensor:
    """Their Eq. (2), `s_k = 1/r log(1/(h w) sum_ij exp(r s_ij^k))`: a soft maximum over cells, (B, C).

    Arguments:
        logits: (B, C, h, w).
    """
    flat = logits.flatten(2)
    return (torch.logsumexp(r * flat, dim=2) - math.log(flat.shape[2])) / r


def ilp_loss(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Their Eq. (4): the negative log-likelihood of the photo's classes, with log-sum-exp over cells.

    For a photo with several classes it is the mean over them; the background counts where it is present.

    Arguments:
        logits: (B, C, h, w).
        present: (B, C) bool, at least one class per photo.
    Returns the mean over photos.
    """
    target = present.to(logits) / present.sum(dim=1, keepdim=True)
    return -(target * functional.log_softmax(log_sum_exp_pool(logits), dim=1)).sum(dim=1).mean()


@torch.no_grad()
def image_prior(logits: Sequence[torch.Tensor], probabilities: torch.Tensor) -> torch.Tensor:
    """Their image-level prior (Sec. 3.3.1): the probabilities of each pixel times those of the photo, `p_ij(k) p(k)`.

    Arguments:
        logits: (C, h, w) of the network, for each view of the photo; they are pooled, then averaged.
        probabilities: (C, H, W).
    Returns (C, H, W), normalised to a distribution over classes in each pixel.
    """
    pooled = torch.stack([log_sum_exp_pool(view[None])[0] for view in logits]).mean(dim=0)
    weighed = probabilities.double() * pooled.double().softmax(dim=0)[:, None, None]
    return (weighed / weighed.sum(dim=0).clamp(min=1e-300)).to(probabilities)


def smooth_by_superpixels(probabilities: np.ndarray, regions: RegionProposals) -> np.ndarray:
    """Their smoothing prior (Sec. 3.3.2), -sppxl: every pixel takes the mean of its superpixel.

    Arguments:
        probabilities: (C, H, W), not negative, a positive sum in every superpixel.
    Returns (C, H, W) float64, a distribution over classes. Costs C H W.
    """
    means = _superpixel_means(probabilities, regions)
    return (means / means.sum(axis=0))[:, regions.superpixels]


def smooth_by_boxes(probabilities: np.ndarray, regions: RegionProposals) -> np.ndarray:
    """The same, -bb, with the regions' boxes instead of BING's: a pixel takes the votes of all boxes that contain it.

    A box's vote for a class is the class's mean probability inside. A pixel in no box keeps its probabilities.
    Arguments and result: see `smooth_by_superpixels`. Costs C (H W + N), with integral images.
    """
    height, width = regions.superpixels.shape
    x0, y0, x1, y1 = regions.boxes.T
    integral = np.zeros((len(probabilities), height + 1, width + 1))
    integral[:, 1:, 1:] = probabilities.cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    inside = integral[:, y1, x1] - integral[:, y0, x1] - integral[:, y1, x0] + integral[:, y0, x0]  # (C, N)
    changes = np.zeros_like(integral)
    for votes, change in zip(inside / ((x1 - x0) * (y1 - y0)), changes, strict=True):
        for rows, columns, sign in ((y0, x0, 1), (y1, x1, 1), (y0, x1, -1), (y1, x0, -1)):
            np.add.at(change, (rows, columns), sign * votes)
    total = changes.cumsum(axis=1).cumsum(axis=2)[:, :-1, :-1]
    held = total.sum(axis=0) > 1e-9
    votes = np.where(held, np.maximum(total, 0), probabilities)
    return votes / votes.sum(axis=0)


def smooth_by_regions(probabilities: np.ndarray, regions: RegionProposals) -> np.ndarray:
    """The same, -seg, with the regions instead of MCG's: a superpixel takes the votes of all regions that contain it.

    A region's vote for a class is the class's mean probability inside. A superpixel in no region keeps its mean.
    Arguments and result: see `smooth_by_superpixels`. Costs C H W and C nnz(M).
    """
    means = _superpixel_means(probabilities, regions)
    inside = np.array([regions.mean_inside(p) for p in means])  # (C, N)
    held = np.asarray(regions.membership.sum(axis=0)).ravel() > 0
    votes = np.where(held, inside @ regions.membership, means)
    return (votes / votes.sum(axis=0))[:, regions.superpixels]


def _superpixel_means(probabilities: np.ndarray, regions: RegionProposals) -> np.ndarray:
    """(C, S) means of (C, H, W)."""
    flat = regions.superpixels.ravel()
    return np.array([np.bincount(flat, p.ravel(), len(regions.areas)) for p in probabilities]) / regions.areas
