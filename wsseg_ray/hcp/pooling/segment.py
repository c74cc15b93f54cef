"""`segment`: the mean feature inside each region, over its superpixels."""

from __future__ import annotations

import torch

from wsseg_ray.hcp.pooling.sums import SumPooling, Sums, shares_of
from wsseg_ray.proposals.regions import RegionProposals


def pool_segments(feature_map: torch.Tensor, regions: RegionProposals) -> torch.Tensor:
    """Mean of the upsampled feature map inside each proposal: `(M (A F)) / (M a)`.

    Arguments:
        feature_map: (C, h, w) of the whole photo.
    Returns (N, C) float32; gradients flow to the feature map. Costs: see `sums.sums_over`.
    """
    return SEGMENT.pool([feature_map], [shares_of(regions, *feature_map.shape[1:])])


def means(sums: Sums) -> torch.Tensor:
    """Mean features (N, C) of regions."""
    return sums.inside / sums.areas


def mean_of_all(maps: torch.Tensor) -> torch.Tensor:
    """Mean features (B, C) of whole feature maps (B, C, h, w)."""
    return maps.mean(dim=(2, 3))


def summed_fc6(weight: torch.Tensor) -> torch.Tensor:
    """Weights (n, 512) for means, from VGG-16's fc6 (n, 512 x 7 x 7), as if all 7x7 input cells held the mean."""
    return weight.unflatten(1, (-1, 7 * 7)).sum(dim=2)


SEGMENT = SumPooling(means, pool_whole=mean_of_all, cells=1, fc6=summed_fc6)
