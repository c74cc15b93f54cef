"""Which proposals train the network: a few, spread over the photo by normalized cut (Sec. 3.1)."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import SpectralClustering

CANDIDATES = 300  # boxes that are clustered; the eigenvectors cost the cube of their number
LINK = 1e-3  # affinity of boxes that do not touch


def select_hypotheses(
    boxes: np.ndarray,
    scores: np.ndarray,
    count: int = 10,
    min_area: int = 900,
    max_aspect: float = 4.0,
    seed: int = 0,
) -> np.ndarray:
    """The best-scored box of each of `count` clusters of boxes, found by normalized cut on their IoU.

    Boxes that are too small or too long are dropped; where that drops all, all stay. The first 300 of what is left
    take part: proposals come best first. With at most `count` boxes there is nothing to choose. Boxes that repeat can
    leave clusters empty: then fewer than `count` are returned.

    Arguments:
        boxes: (N, 4) px: x0, y0, x1, y1, the end exclusive.
        scores: (N,), higher is better; the first of equals wins.
        min_area: px, of the box.
        max_aspect: longer side by shorter side.
    Returns sorted indices, at most `count`. Costs 0.2 s for 300 boxes.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).T
    fits = (width * height >= min_area) & (np.maximum(width, height) <= max_aspect * np.minimum(width, height))
    candidates = np.flatnonzero(fits if fits.any() else np.ones(len(boxes), bool))[:CANDIDATES]
    if len(candidates) <= count:
        return candidates
    # Without a link, boxes apart from each other are separate graphs, whose eigenvectors are not determined.
    affinity = box_iou(boxes[candidates]) + LINK
    clusters = SpectralClustering(
        n_clusters=count, affinity="precomputed", assign_labels="cluster_qr", random_state=seed
    ).fit_predict(affinity)
    best_first = np.argsort(-scores[candidates], kind="stable")
    _, best = np.unique(clusters[best_first], return_index=True)
    return np.sort(candidates[best_first[best]])


def box_iou(boxes: np.ndarray) -> np.ndarray:
    """IoU of all pairs of boxes (N, 4), (N, N) float64. A box without area overlaps nothing."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    intersection = np.maximum(high - low, 0).prod(axis=2).astype(np.float64)
    area = intersection.diagonal()
    union = area[:, None] + area[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
