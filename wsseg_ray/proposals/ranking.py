"""The order of proposals: regions that look like objects first, and near the top regions that differ from each other.

A small perceptron reads geometry, contour strength and contrast of every region. It was trained on the human segments
of BSDS500: how well does a region fit a segment that looks like an object? Maximum marginal relevance (Carbonell and
Goldstein, SIGIR 1998; MCG uses it too) then repeatedly takes the region with the best score minus overlap.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.special import expit

from wsseg_ray.proposals.hierarchies import Looks, Partition
from wsseg_ray.proposals.learned import Layers, perceive
from wsseg_ray.proposals.regions import label_boxes

CHUNK = 2048  # regions whose arcs are computed together: limits memory
SURE = (0.25, 0.5, 0.75)  # probabilities above which an arc counts as a contour
BLOCK = 500  # regions that are ranked together, without the others
DUPLICATE = 0.95  # IoU
OVERLAP_PENALTY = 1.0  # subtracted from a score per unit of IoU; a score estimates an IoU


def rank(
    parts: Partition, seen: Looks, strengths: np.ndarray, regions: np.ndarray, network: Layers, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The regions that look most like objects, at most `count`.

    Arguments:
        strengths: (E,) probability of a contour.
        regions: (S, N) bool.
        network: from `features` to an estimate of the IoU with an object.
        count: how many at most.
    Returns indices and objectness, see `diverse`.
    """
    return diverse(regions, parts.areas, perceive(network, features(parts, seen, strengths, regions)), count)


def features(parts: Partition, seen: Looks, strengths: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Features of every region for the ranking, (N, 3 K + 30) float32: contours and contrast, then geometry.

    Arguments and costs: see `contours_and_contrast`.
    """
    members = np.ascontiguousarray(regions.T, dtype=np.float32)
    contours, outline = contours_and_contrast(parts, seen, strengths, regions, members)
    return np.hstack([contours, geometry(parts, regions, members, outline)])


def contours_and_contrast(
    parts: Partition, seen: Looks, strengths: np.ndarray, regions: np.ndarray, members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean contour strength on the outline and inside, their log ratio, and how the ring around a region differs.

    An arc lies inside a region when both its ends do. A sum over the arcs of all the region's superpixels counts each
    inside arc twice and each outline arc once. So the sum along the outline is a product over superpixels, minus a
    product over inside arcs.

    Arguments:
        strengths: (E,) probability of a contour.
        regions, members: the regions, (S, N) bool and transposed, (N, S) float32.
    Costs 2 (S + E) N (K + 68) operations for K cues: most of the ranking's cost outside `diverse`.

    Returns (N, 3 (K + 4) + 3) float32, and the outlines' lengths in pixel edges, (N,).
    """
    first, second = parts.ends
    sure = np.greater.outer(strengths, SURE)  # (E, 3)
    weights = parts.lengths[:, None] * np.column_stack([np.ones(len(first)), strengths, sure, parts.cues.T])
    look = np.hstack([seen.colour, seen.colours, seen.textures])
    kinds = np.cumsum([seen.colour.shape[1], seen.colours.shape[1]])
    arcs = np.tile(np.arange(len(first)), 2)
    beyond = parts.lengths[arcs, None] * look[np.concatenate([second, first])]  # (2 E, d): at the other end
    touches = sparse.csr_array(
        (np.ones(len(arcs)), (np.concatenate([first, second]), np.arange(len(arcs)))), (len(parts.areas), len(arcs))
    )
    sums = members @ (touches @ np.hstack([weights[arcs], beyond])).astype(np.float32)
    inner = np.hstack([2 * weights, np.add(*np.split(beyond, 2))]).astype(np.float32)
    inside = np.empty((len(members), weights.shape[1]), np.float32)
    for start in range(0, len(members), CHUNK):
        chunk = slice(start, start + CHUNK)
        both = (regions[first, chunk] & regions[second, chunk]).astype(np.float32).T @ inner
        inside[chunk] = both[:, : weights.shape[1]] / 2
        sums[chunk] -= both
    outline, ring = np.split(sums, [weights.shape[1]], axis=1)
    long = np.maximum(outline[:, :1], 1)
    on, within = outline[:, 1:] / long, inside[:, 1:] / np.maximum(inside[:, :1], 1)
    areas = members @ parts.areas.astype(np.float32)
    contrast = ring / long - members @ (parts.areas[:, None] * look).astype(np.float32) / areas[:, None]
    unlike = [np.linalg.norm(part, axis=1) for part in np.split(contrast, kinds, axis=1)]
    return np.column_stack([on, within, np.log(on + 0.01) - np.log(within + 0.01), *unlike]), outline[:, 0]


def geometry(parts: Partition, regions: np.ndarray, members: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Size, shape, place, and contact of a region with the photo's four sides.

    Arguments:
        regions, members, outline: see `contours_and_contrast`.
    Returns (N, 15) float32.
    """
    height, width = parts.superpixels.shape
    x0, y0, x1, y1 = label_boxes(parts.superpixels).astype(np.int32).T[..., None]  # (S, 1) each
    left, top = (np.where(regions, start, np.int32(max(height, width))).min(axis=0) for start in (x0, y0))
    right, bottom = (np.where(regions, stop, np.int32(0)).max(axis=0) for stop in (x1, y1))
    box_width, box_height = right - left, bottom - top
    on_side = np.stack([np.bincount(side, minlength=len(parts.areas)) for side in sides(parts.superpixels)], axis=1)
    on_side = members @ on_side.astype(np.float32)  # (N, 4) pixels
    areas = members @ parts.areas.astype(np.float32)
    share = areas / parts.superpixels.size
    perimeter = outline + on_side.sum(axis=1)
    return np.column_stack(
        [
            np.log(share),
            share,
            np.log(areas / (box_width * box_height)),
            np.log(areas / perimeter**2),
            np.log(box_width / box_height),
            np.abs((left + right) / 2 / width - 0.5),
            np.abs((top + bottom) / 2 / height - 0.5),
            on_side / [height, height, width, width],
            (on_side > 0).sum(axis=1),
            on_side.sum(axis=1) / perimeter,
            box_width / width,
            box_height / height,
        ]
    ).astype(np.float32)


def sides(labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """The pixels of a label map (H, W) on the photo's left, right, upper and lower side."""
    return labels[:, 0], labels[:, -1], labels[0], labels[-1]


def diverse(regions: np.ndarray, areas: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Maximum marginal relevance: take, again and again, the region with the highest `score - penalty * IoU`.

    The IoU is the largest one with a taken region. Without the penalty the first hundred regions are slight variants
    of the best one. A region with an IoU above 0.95 with a taken region is a duplicate and is dropped.

    A region's value never rises. So a block of the best regions is ranked without the others, as long as its best
    value is not below the last known values of the others. Then one product updates the others.

    Arguments:
        regions: (S, N) bool.
        areas: (S,) pixels.
        scores: (N,).
        count: how many at most, C.
    Costs 2 C N S operations, about a fifth more for the products within blocks, and 8 N S bytes.

    Returns indices, and objectness in 0..1: the logistic function of the value, descending; both (n,), n at most
    `count`.
    """
    weighted = np.ascontiguousarray(regions.T) * np.sqrt(areas).astype(np.float32)  # (N, S)
    sizes = areas.astype(np.float32) @ regions

    def iou(rows: np.ndarray, columns: np.ndarray | slice) -> np.ndarray:
        shared = weighted[rows] @ weighted[columns].T
        union = sizes[rows, None] + sizes[columns]
        union -= shared
        return np.divide(shared, union, out=shared)

    left, overlap = scores.astype(np.float32), np.zeros(len(scores), np.float32)  # dropped: -inf
    order, values = np.empty(0, np.int64), []
    while len(order) < count and (left > -np.inf).any():
        ahead = np.argsort(OVERLAP_PENALTY * overlap - left, kind="stable")
        block, others = ahead[:BLOCK], ahead[BLOCK:]
        bound = max(left[others[:1]] - OVERLAP_PENALTY * overlap[others[:1]], default=-np.inf)
        among = iou(block, block)
        taken: list[np.intp] = []
        while len(order) + len(taken) < count:
            value = left[block] - OVERLAP_PENALTY * overlap[block]
            best = value.argmax()
            if value[best] < bound or value[best] == -np.inf:
                break
            taken.append(best)
            values.append(value[best])
            overlap[block] = np.maximum(overlap[block], among[best])
            left[block[overlap[block] > DUPLICATE]] = -np.inf
        order = np.append(order, block[taken])
        np.maximum(overlap, iou(block[taken], slice(None)).max(axis=0), out=overlap)
        left[overlap > DUPLICATE] = -np.inf
    return order, expit(np.array(values, np.float32))
