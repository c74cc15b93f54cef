"""`context`: the mean feature inside each region, and its difference from the mean over the rest of the photo."""

from __future__ import annotations

import torch

from wsseg_ray.hcp.pooling.segment import mean_of_all, means, summed_fc6
from wsseg_ray.hcp.pooling.sums import SumPooling, Sums, shares_of
from wsseg_ray.proposals.regions import RegionProposals


def pool_context(feature_map: torch.Tensor, regions: RegionProposals) -> torch.Tensor:
    """`pool_segments`, and its difference from the mean over the rest of the photo: see `means_in_context`."""
    return CONTEXT.pool([feature_map], [shares_of(regions, *feature_map.shape[1:])])


def means_in_context(sums: Sums) -> torch.Tensor:
    """Mean features of regions, and their differences from the mean over the rest of the photo.

    A part of an object, or a larger region around it, may score as high as the object; their surroundings differ. The
    idea is ContextLocNet's contrast (Kantorov et al., ECCV 2016), on regions. A region that is the whole photo has no
    surroundings: its difference is zero.

    The sum over the rest is that over the photo, minus that over the region.
    Returns (N, 2 C) float32: means, then differences.
    """
    rest = sums.pixels - sums.areas
    mean = means(sums)
    difference = mean - (sums.whole - sums.inside) / rest.clamp(min=1)
    return torch.cat([mean, difference.masked_fill(rest < 0.5, 0)], dim=1)


def whole_in_context(maps: torch.Tensor) -> torch.Tensor:
    """Means of whole feature maps (B, C, h, w) and zeros, (B, 2 C): a whole photo has no surroundings."""
    mean = mean_of_all(maps)
    return torch.cat([mean, torch.zeros_like(mean)], dim=1)


def contrast_fc6(weight: torch.Tensor) -> torch.Tensor:
    """Weights (n, 2 x 512) from VGG-16's fc6 (n, 512 x 7 x 7); the weights of the differences start at 0."""
    means = summed_fc6(weight)
    return torch.cat([means, torch.zeros_like(means)], dim=1)


CONTEXT = SumPooling(means_in_context, pool_whole=whole_in_context, cells=2, fc6=contrast_fc6)
