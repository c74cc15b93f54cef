"""Every proposal of a photo through the network, and which of them are candidates (Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from wsseg_ray.hcp.loss import class_scores
from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.hcp.pooling import pool_boxes, pool_context, pool_segments, warp_crops
from wsseg_ray.proposals.regions import RegionProposals

CHUNK = 64  # warped crops a forward pass: 40 MB of photos and 1 GB of VGG-16's feature maps
ROWS = 512  # proposals a pass of fc6 and fc7: 51 MB of VGG-16's pooled boxes, and 8 MB behind each of the two


def pool_photos(
    network: HypothesisNetwork, photos: Sequence[torch.Tensor], regions: Sequence[RegionProposals] | None
) -> list[torch.Tensor]:
    """What is pooled of several photos: of the whole photo, or of its regions, for each.

    A photo pools the same alone and in any batch, up to the rounding of sums: `Trunk.maps_of`.

    Arguments:
        photos: (3, H, W) each, normalised, on the device of the network.
        regions: of each photo; None: the whole photo is the one hypothesis, as in image-fine-tuning.
    Returns (n, C, grid, grid) for each photo, or (n, C) for `segment` and (n, 2 C) for `context`.
    """
    whole = regions is None
    if network.pooling == "warp":
        if whole:
            return [pool_photo(network, photo) for photo in photos]
        return [pool_regions(network, photo, own) for photo, own in zip(photos, regions, strict=True)]
    maps = network.trunk.maps_of(photos)
    if whole:
        return [network.pool_whole(feature_map[None]) for feature_map in maps]
    return [pool_map(network, feature_map, own) for feature_map, own in zip(maps, regions, strict=True)]


def pool_regions(network: HypothesisNetwork, photo: torch.Tensor, regions: RegionProposals) -> torch.Tensor:
    """What is pooled of every proposal, with the network's pooling; input of `network.embed`.

    Costs one pass of the trunk over the photo, and for `warp` one over a crop a proposal instead.

    Arguments:
        photo: (3, H, W) normalised.
    Returns (N, C, grid, grid), or (N, C) for `segment` and (N, 2 C) for `context`.
    """
    return torch.cat(list(_pool_chunks(network, photo, regions)))


def pool_map(network: HypothesisNetwork, feature_map: torch.Tensor, regions: RegionProposals) -> torch.Tensor:
    """`pool_regions` for all but `warp`, where the photo's feature map (C, h, w) is there already."""
    if network.pooling == "roi":
        return pool_boxes(feature_map, regions.boxes, network.stride, network.grid)
    return (pool_context if network.pooling == "context" else pool_segments)(feature_map, regions)


def pool_photo(network: HypothesisNetwork, photo: torch.Tensor) -> torch.Tensor:
    """What is pooled where the whole photo (3, H, W) is the one hypothesis, as in image-fine-tuning; a batch of 1."""
    if network.pooling == "warp":
        box = np.array([[0, 0, photo.shape[2], photo.shape[1]]])
        return network.pool_whole(network.features(warp_crops(photo, box, network.crop)))
    return network.pool_whole(network.features(photo[None]))


@torch.no_grad()
def score_proposals(
    network: HypothesisNetwork, photo: torch.Tensor, regions: RegionProposals, loss: str = "squared"
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, classes), as `loss` compares them, and embeddings (N, D) of all proposals, float32.

    Proposals go through fc6 and fc7 in chunks, so that memory does not grow with what is pooled of all of them. A photo
    that is too large for the GPU has its trunk pass on the CPU.
    """
    embedding = torch.cat([network.embed(pooled) for pooled in _pool_chunks(network, photo, regions)])
    scores = class_scores(network.classify(embedding), loss)
    return scores.cpu().numpy(), embedding.cpu().float().numpy()


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


def _pool_chunks(network: HypothesisNetwork, photo: torch.Tensor, regions: RegionProposals) -> Iterator[torch.Tensor]:
    """`pool_regions`, some proposals at a time."""
    if network.pooling == "warp":
        for boxes in _split(regions.boxes, CHUNK):
            yield network.pool_whole(network.features(warp_crops(photo, boxes, network.crop)))
        return
    feature_map = _photo_features(network, photo)
    if network.pooling == "roi":
        for boxes in _split(regions.boxes, ROWS):
            yield pool_boxes(feature_map, boxes, network.stride, network.grid)
        return
    yield from pool_map(network, feature_map, regions).split(ROWS)


def _split(boxes: np.ndarray, size: int) -> list[np.ndarray]:
    return np.array_split(boxes, max(1, -(-len(boxes) // size)))


def _photo_features(network: HypothesisNetwork, photo: torch.Tensor) -> torch.Tensor:
    """Feature map (C, h, w) of a photo, on the CPU where the GPU has no room for the pass and no gradient is wanted."""
    try:
        return network.features(photo[None])[0]
    except torch.cuda.OutOfMemoryError:
        if torch.is_grad_enabled():
            raise
    # Behind the handler: inside it the error's frames keep what the failed pass holds on the GPU.
    place = next(network.trunk.parameters())
    device, dtype = place.device, place.dtype
    network.trunk.to("cpu", torch.float32)
    try:
        return network.features(photo[None].to("cpu", torch.float32))[0].to(photo)
    finally:
        network.trunk.to(device, dtype)
