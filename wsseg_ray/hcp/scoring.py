"""Every proposal of a photo through the network, and which of them are candidates (Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.hcp.pooling import pool_boxes, pool_segments, warp_crops
from wsseg_ray.proposals.regions import RegionProposals

CHUNK = 64  # warped crops a forward pass: 40 MB of photos and 1 GB of VGG-16's feature maps


def pool_regions(network: HypothesisNetwork, photo: torch.Tensor, regions: RegionProposals) -> torch.Tensor:
    """What is pooled of every proposal, with the network's pooling; input of `network.embed`.

    Costs one pass of the trunk over the photo, and for `warp` one over a crop a proposal instead.

    Arguments:
        photo: (3, H, W) normalised.
    Returns (N, C, grid, grid), or (N, C) for `segment`.
    """
    if network.pooling == "warp":
        return torch.cat(
            [
                network.pool_whole(network.features(warp_crops(photo, boxes, network.crop)))
                for boxes in np.array_split(regions.boxes, -(-len(regions) // CHUNK))
            ]
        )
    return pool_map(network, network.features(photo[None])[0], regions)


def pool_map(network: HypothesisNetwork, feature_map: torch.Tensor, regions: RegionProposals) -> torch.Tensor:
    """`pool_regions` for `roi` and `segment`, where the photo's feature map (C, h, w) is there already."""
    if network.pooling == "roi":
        return pool_boxes(feature_map, regions.boxes, network.stride, network.grid)
    return pool_segments(feature_map, regions)


def pool_photo(network: HypothesisNetwork, photo: torch.Tensor) -> torch.Tensor:
    """What is pooled where the whole photo (3, H, W) is the one hypothesis, as in image-fine-tuning; a batch of 1."""
    if network.pooling == "warp":
        box = np.array([[0, 0, photo.shape[2], photo.shape[1]]])
        return network.pool_whole(network.features(warp_crops(photo, box, network.crop)))
    return network.pool_whole(network.features(photo[None]))


@torch.no_grad()
def score_proposals(
    network: HypothesisNetwork, photo: torch.Tensor, regions: RegionProposals
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax scores (N, classes) and embeddings (N, D) of all proposals, float32."""
    embedding = network.embed(pool_regions(network, photo, regions))
    return network.classify(embedding).softmax(dim=1).cpu().numpy(), embedding.cpu().numpy()


def choose_candidates(scores: np.ndarray, threshold: float, min_candidates: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The object candidates of each label: proposals with a score above the threshold, best first (Sec. 3.1).

    A label without any gets its `min_candidates` best-scored proposals: a photo with several labels is trained
    towards 1 / labels each, which may lie below the threshold everywhere.

    Arguments:
        scores: (K, N), the photo's labels.
    Returns the candidates of each label, and for which labels (K,) bool the fall-back served.
    """
    chosen, fallback = [], np.zeros(len(scores), bool)
    for k, score in enumerate(scores):
        order = np.argsort(-score, kind="stable")
        passed = int((score > threshold).sum())
        fallback[k] = passed == 0
        chosen.append(order[: passed or min_candidates])
    return chosen, fallback


def flatten_candidates(chosen: list[np.ndarray], labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of all labels in a row, (n,), and the label of each, (n,)."""
    return np.concatenate(chosen), np.repeat(labels, [len(candidates) for candidates in chosen])
