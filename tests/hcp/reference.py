"""Pooling of one photo at a time: what the stages' ways to pool must give."""

from __future__ import annotations

import torch

from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.hcp.scoring import source_of
from wsseg_ray.proposals.regions import RegionProposals


def pool_regions(network: HypothesisNetwork, photo: torch.Tensor, regions: RegionProposals) -> torch.Tensor:
    """Pooled features of each proposal, with the network's pooling; input of `network.embed`.

    Costs one pass of the backbone over the photo; for `warp` instead one pass over a crop per proposal.

    Arguments:
        photo: (3, H, W) normalised.
    Returns (N, ...).
    """
    return torch.cat(list(network.pooling.chunks(network, source_of(network, photo), regions)))


def pool_photo(network: HypothesisNetwork, photo: torch.Tensor) -> torch.Tensor:
    """Pooled features (1, ...) of the whole photo (3, H, W) as the only hypothesis, as in image-fine-tuning."""
    source = photo[None] if network.pooling.needs_photo else network.features(photo[None])
    return network.pooling.whole(network, source)
