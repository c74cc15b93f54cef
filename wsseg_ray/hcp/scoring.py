"""Scores of all proposals of a photo, and the choice of candidates (Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from wsseg_ray.hcp.loss import Loss
from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.proposals.regions import RegionProposals


def pool_photos(
    network: HypothesisNetwork, photos: Sequence[torch.Tensor], regions: Sequence[RegionProposals] | None
) -> list[torch.Tensor]:
    """Pooled features of several photos: of each photo's regions, or of the whole photo.

    A photo's features are the same alone and in any batch, except for rounding: see the backbone's `maps_of`.

    Arguments:
        photos: (3, H, W) each, normalised, on the device of the network.
        regions: of each photo; None: the whole photo is the only hypothesis, as in image-fine-tuning.
    Returns (n, ...) per photo, input of `network.embed`.
    """
    sources = photos if network.pooling.needs_photo else network.backbone.maps_of(photos)
    return pool_sources(network, sources, regions)


def pool_sources(
    network: HypothesisNetwork, sources: Sequence[torch.Tensor], regions: Sequence[RegionProposals] | None
) -> list[torch.Tensor]:
    """`pool_photos` from what the pooling reads of each photo: its feature map (C, h, w), see `RegionPooling`."""
    pooling = network.pooling
    if regions is None:
        return [pooling.whole(network, source[None]) for source in sources]
    pairs = zip(sources, regions, strict=True)
    return [torch.cat(list(pooling.chunks(network, source, own))) for source, own in pairs]


@torch.no_grad()
def score_proposals(
    network: HypothesisNetwork, photo: torch.Tensor, regions: RegionProposals, loss: Loss
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, classes) and embeddings (N, D) of all proposals, float32.

    If a photo is too large for the GPU, the backbone runs on the CPU.

    Arguments:
        photo: (3, H, W) normalised.
        loss: the loss that the network was trained with; it defines the scores.
    """
    return score_source(network, source_of(network, photo), regions, loss)


@torch.no_grad()
def score_source(
    network: HypothesisNetwork, source: torch.Tensor, regions: RegionProposals, loss: Loss
) -> tuple[np.ndarray, np.ndarray]:
    """`score_proposals` from what the pooling reads of the photo: its feature map (C, h, w), see `RegionPooling`.

    Proposals go through fc6 and fc7 in chunks, so that memory does not grow with their number.
    """
    scores, embedding = score_pooled(network, network.pooling.chunks(network, source, regions), loss)
    return scores.cpu().numpy(), embedding.cpu().numpy()


@torch.no_grad()
def score_pooled(
    network: HypothesisNetwork, chunks: Iterable[torch.Tensor], loss: Loss
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, classes) and embeddings (N, D) float32 of pooled features (n, ...), which stay on their device."""
    embedding = torch.cat([network.embed(pooled) for pooled in chunks]).float()
    return loss.scores(network.classify(embedding)), embedding


def choose_candidates(scores: np.ndarray, threshold: float, min_candidates: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The candidates of each label: proposals with a score above the threshold, best first (Sec. 3.1).

    A label without any such proposal gets its `min_candidates` best-scored proposals: for a photo with several labels
    the training target is 1 / labels, which may be below the threshold.

    Arguments:
        scores: (K, N), one row per label of the photo.
    Returns the candidates of each label, and (K,) bool: which labels got the best-scored proposals instead.
    """
    chosen, fallback = [], np.zeros(len(scores), bool)
    for k, score in enumerate(scores):
        order = np.argsort(-score, kind="stable")
        passed = int((score > threshold).sum())
        fallback[k] = passed == 0
        chosen.append(order[: passed or min_candidates])
    return chosen, fallback


def flatten_candidates(chosen: list[np.ndarray], labels: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of all labels in one array, (n,), and the label of each, (n,)."""
    return np.concatenate(chosen), np.repeat(labels, [len(candidates) for candidates in chosen])


def source_of(network: HypothesisNetwork, photo: torch.Tensor) -> torch.Tensor:
    """What the pooling reads of a photo (3, H, W), normalised: the photo, or its feature map (C, h, w)."""
    return photo if network.pooling.needs_photo else _photo_features(network, photo)


def _photo_features(network: HypothesisNetwork, photo: torch.Tensor) -> torch.Tensor:
    """Feature map (C, h, w) of a photo; without gradients, computed on the CPU if the GPU has too little memory."""
    try:
        return network.features(photo[None])[0]
    except torch.cuda.OutOfMemoryError:
        if torch.is_grad_enabled():
            raise
    # After the handler: inside it, the error's frames keep the GPU memory of the failed pass.
    place = next(network.backbone.parameters())
    device, dtype = place.device, place.dtype
    network.backbone.to("cpu", torch.float32)
    try:
        return network.features(photo[None].to("cpu", torch.float32))[0].to(photo)
    finally:
        network.backbone.to(device, dtype)
