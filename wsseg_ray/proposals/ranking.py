"""Which candidates look like objects, and in which order: different ones first.

A small perceptron, that learned from the human segments of BSDS500 how well a region fits one that looks like an
object, reads geometry, contour strength and contrast of every candidate. Maximum marginal relevance (Carbonell and
Goldstein, SIGIR 1998; MCG ranks by it too) then takes each time the candidate with the best score that is new.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.linalg.blas import ssyrk

from wsseg_ray.proposals.hierarchies import Looks, Partition
from wsseg_ray.proposals.regions import RegionProposals

CHUNK = 2048  # candidates whose arcs are looked at together: bounds memory
POOL = 4000  # best-scored candidates that are ranked for diversity; bounds time and memory
GREEDY = 500
DUPLICATE = 0.95  # IoU
OVERLAP_PENALTY = 1.0  # of a score, which is an IoU


def features(parts: Partition, seen: Looks, strengths: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """What the ranking reads of every candidate, (N, F) float32.

    Sums along contours and inside regions are products with the arcs that lie inside: an arc is inside a region when
    both its ends are. The arcs of the contour are those that the region touches without.

    Arguments:
        strengths: (E,) probability of a contour.
        regions: (S, N) bool.
    Costs E N operations an arc feature.
    """
    source, target = parts.ends
    height, width = parts.superpixels.shape
    look = np.hstack([seen.colour, 30 * seen.colours, 30 * seen.textures])
    cues = np.vstack([strengths, strengths > 0.25, strengths > 0.5, strengths > 0.75, parts.cues])
    weighted = np.vstack([parts.lengths, parts.lengths * cues])  # (1 + K, E)
    ends = sparse.csr_array(
        (np.ones(2 * len(source)), (np.concatenate([source, target]), np.tile(np.arange(len(source)), 2))),
        shape=(len(parts.areas), len(source)),
    )  # (S, E)
    touched = regions.T.astype(np.float32) @ (ends @ weighted.T).astype(np.float32)  # (N, 1 + K)
    inside = np.empty_like(touched)
    ring = regions.T.astype(np.float32) @ _outer(parts, look)
    for start in range(0, regions.shape[1], CHUNK):
        chunk = slice(start, start + CHUNK)
        inner = (regions[source, chunk] & regions[target, chunk]).astype(np.float32)  # (E, n)
        inside[chunk] = inner.T @ weighted.T.astype(np.float32)
        ring[chunk] -= inner.T @ (parts.lengths[:, None] * (look[source] + look[target])).astype(np.float32)
    outline = touched - 2 * inside
    long, within = np.maximum(outline[:, :1], 1), np.maximum(inside[:, :1], 1)
    areas = regions.T.astype(np.float32) @ parts.areas.astype(np.float32)
    mean_look = (regions.T.astype(np.float32) @ (parts.areas[:, None] * look).astype(np.float32)) / areas[:, None]
    contrast = np.abs(ring / long - mean_look)
    boxes = RegionProposals(parts.superpixels, sparse.csr_array(regions.T, dtype=np.float32)).boxes
    box_width, box_height = (boxes[:, 2:] - boxes[:, :2]).T
    border = np.stack([np.bincount(side, minlength=len(parts.areas)) for side in sides(parts.superpixels)], axis=1)
    on_border = regions.T.astype(np.float32) @ border.astype(np.float32)  # (N, 4) pixels
    share = areas / parts.superpixels.size
    perimeter = outline[:, 0] + on_border.sum(axis=1)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / [width, height] - 0.5
    return np.column_stack(
        [
            outline[:, 1:] / long,
            inside[:, 1:] / within,
            np.log(outline[:, 1:] / long + 0.01) - np.log(inside[:, 1:] / within + 0.01),
            np.linalg.norm(contrast[:, :3], axis=1),
            np.linalg.norm(contrast[:, 3:39], axis=1),
            np.linalg.norm(contrast[:, 39:], axis=1),
            np.log(share),
            share,
            np.log(areas / (box_width * box_height)),
            np.log(areas / perimeter**2),
            np.log(box_width / box_height),
            np.abs(centre),
            on_border / [width, width, height, height],
            (on_border > 0).sum(axis=1),
            on_border.sum(axis=1) / perimeter,
            box_width / width,
            box_height / height,
        ]
    ).astype(np.float32)


def _outer(parts: Partition, look: np.ndarray) -> np.ndarray:
    """Sum over the arcs of a superpixel of length times the look of the other end, and its own, (S, d)."""
    source, target = parts.ends
    total = np.zeros((len(parts.areas), look.shape[1]), np.float32)
    weighted = parts.lengths[:, None] * look[target]
    np.add.at(total, source, weighted)
    np.add.at(total, target, parts.lengths[:, None] * look[source])
    return total


def sides(superpixels: np.ndarray) -> tuple[np.ndarray, ...]:
    return superpixels[0], superpixels[-1], superpixels[:, 0], superpixels[:, -1]


def diverse(regions: np.ndarray, areas: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Maximum marginal relevance: greedily the candidate with the highest `score - penalty * IoU with those taken`.

    Without it the first hundred are slight variants of the one best region. Candidates that overlap one that was
    taken with an IoU above 0.95 are duplicates and are dropped. After the first 500 all others follow at once, by the
    same value: the order matters little so far down.

    Arguments:
        regions: (S, N) bool.
        areas: (S,) pixels.
        scores: (N,).
        count: how many at most.
    Costs 8 N^2 bytes, a product of N^2 S / 2 operations and 500 passes over N.

    Returns indices, and objectness, the exponential of that value, which never rises; both (n,), n at most `count`.
    """
    weighted = regions.T * np.sqrt(areas).astype(np.float32)  # (N, S)
    triangle = ssyrk(1, weighted.T, trans=True)  # of the intersections in pixels: they are symmetric
    intersection = triangle + triangle.T
    sizes = triangle.diagonal()
    np.fill_diagonal(intersection, sizes)
    scores = scores.astype(np.float32)
    overlap = np.zeros(len(scores), np.float32)
    order, values = [], []
    while len(order) < min(count, GREEDY):
        value = scores - OVERLAP_PENALTY * overlap
        best = value.argmax() if len(value) else 0
        if not len(value) or value[best] == -np.inf:
            break
        order.append(best)
        values.append(value[best])
        iou = intersection[best] / (sizes[best] + sizes - intersection[best])
        scores[iou > DUPLICATE] = -np.inf
        np.maximum(overlap, iou, out=overlap)
    value = scores - OVERLAP_PENALTY * overlap
    rest = np.argsort(-value, kind="stable")[: np.isfinite(value).sum()][: count - len(order)]
    return np.append(order, rest).astype(np.int64), np.exp(np.append(values, value[rest]).astype(np.float32))
