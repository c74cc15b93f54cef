"""Which proposals train the network: a few, spread over the photo by normalized cut (Sec. 3.1)."""

from __future__ import annotations

import numpy as np
from scipy import linalg

LINK = 1e-3  # affinity of boxes that do not touch
# With equal boxes, boxes all apart or boxes on a grid, rounding would decide the clusters, and it differs between
# machines. So each affinity is increased by its own random share, up to this one. From 1e-10 on, noise of 1e-14 on the
# affinities changed no choice. Up to 1e-4 no choice on 40 real photos and 60 sets of random boxes changed; at 1e-3 one
# did.
TIE_BREAK = 1e-4


def select_hypotheses(
    boxes: np.ndarray,
    scores: np.ndarray,
    count: int = 10,
    min_area: int = 900,
    max_aspect: float = 4.0,
    clustered: int = 300,
) -> np.ndarray:
    """The best-scored box of each of `count` clusters of boxes, found by normalized cut on their IoU.

    Boxes that are too small or too long are dropped, unless that drops all boxes. Only the first `clustered` of the
    others are used: proposals come best first. If at most `count` boxes remain, all are returned. Clusters can be
    empty: then fewer than `count` boxes are returned. The choice does not depend on rounding.

    Arguments:
        boxes: (N, 4) px: x0, y0, x1, y1, the end exclusive.
        scores: (N,), higher is better; of equal scores the first is taken.
        min_area: px, of the box.
        max_aspect: longer side divided by shorter side.
        clustered: boxes that normalized cut clusters, best first.
    Returns sorted indices, at most `count`. Costs the cube of `clustered`, 0.02 s for 300 boxes and 1.2 s for 2,000.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).T
    fits = (width * height >= min_area) & (np.maximum(width, height) <= max_aspect * np.minimum(width, height))
    candidates = np.flatnonzero(fits if fits.any() else np.ones(len(boxes), bool))[:clustered]
    if len(candidates) <= count:
        return candidates
    # Without a link, boxes that do not touch are separate graphs, and all cuts between these cost nothing.
    clusters = normalized_cut(box_iou(boxes[candidates]) + LINK, count)
    best_first = np.argsort(-scores[candidates], kind="stable")
    _, best = np.unique(clusters[best_first], return_index=True)
    return np.sort(candidates[best_first[best]])


def normalized_cut(affinity: np.ndarray, count: int) -> np.ndarray:
    """Clusters of a graph's vertices by normalized cut (Shi and Malik, PAMI 2000).

    The eigenvectors of the normalized affinity with the largest eigenvalues become clusters by a pivoted QR and the
    rotation nearest to its pivots (Damle, Minden and Ying, Information and Inference 2019). Ties are broken by a fixed
    pattern, see `TIE_BREAK`.

    Arguments:
        affinity: (N, N) symmetric, positive off the diagonal; the diagonal is not used.
        count: clusters, less than N.
    Returns the cluster of every vertex, (N,) in 0..count-1; a cluster can be empty. Costs N^3.
    """
    pattern = np.random.default_rng(0).random(affinity.shape)
    affinity = affinity * (1 + TIE_BREAK / 2 * (pattern + pattern.T))
    np.fill_diagonal(affinity, 0)
    root = np.sqrt(affinity.sum(axis=0))
    # This needs the broken ties: LAPACK finds no eigenvectors where a range ends among equal eigenvalues.
    wanted = [len(affinity) - count, len(affinity) - 1]
    vectors = linalg.eigh(affinity / np.outer(root, root), subset_by_index=wanted)[1] / root[:, None]
    pivots = linalg.qr(vectors.T, mode="r", pivoting=True)[1][:count]
    left, _, right = linalg.svd(vectors[pivots].T)
    return np.abs(vectors @ (left @ right)).argmax(axis=1)


def box_iou(boxes: np.ndarray) -> np.ndarray:
    """IoU of all pairs of boxes (N, 4), (N, N) float64. A box without area overlaps nothing."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    intersection = np.maximum(high - low, 0).prod(axis=2).astype(np.float64)
    area = intersection.diagonal()
    union = area[:, None] + area[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
