"""MIL-ILP: Pinheiro and Collobert: From Image-level to Pixel-level Labeling with Convolutional Networks, CVPR 2015."""

from __future__ import annotations

import math

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

    A photo with several classes is the mean over them, the background among them as long as it is present.

    Arguments:
        logits: (B, C, h, w).
        present: (B, C) bool, at least one a photo.
    Returns the mean over photos.
    """
    target = present.to(logits) / present.sum(dim=1, keepdim=True)
    return -(target * functional.log_softmax(log_sum_exp_pool(logits), dim=1)).sum(dim=1).mean()


@torch.no_grad()
def image_prior(logits: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Their image-level prior (Sec. 3.3.1): every pixel's probabilities times the photo's, `p_ij(k) p(k)`.

    Arguments:
        logits: (C, h, w) of the network.
        probabilities: (C, H, W).
    Returns (C, H, W), not normalised.
    """
    prior = log_sum_exp_pool(logits[None])[0].softmax(dim=0)
    return probabilities * prior[:, None, None]


def smooth_by_regions(probabilities: np.ndarray, regions: RegionProposals) -> np.ndarray:
    """Their smoothing prior (Sec. 3.3.2), with regions in MCG's place: a superpixel takes the vote of all that hold it.

    A region's vote for a class is its mean probability inside. A superpixel that no region holds keeps its own mean.

    Arguments:
        probabilities: (C, H, W), not negative, a positive sum in every superpixel.
    Returns (C, H, W) float64, constant on superpixels, a distribution over classes. Costs C H W and C nnz(M).
    """
    flat = regions.superpixels.ravel()
    means = np.array([np.bincount(flat, p.ravel(), len(regions.areas)) for p in probabilities]) / regions.areas
    inside = np.array([regions.mean_inside(p) for p in means])  # (C, N)
    held = np.asarray(regions.membership.sum(axis=0)).ravel() > 0
    votes = np.where(held, inside @ regions.membership, means)
    return (votes / votes.sum(axis=0))[:, regions.superpixels]
