"""Eq. (1): the average distance of a candidate from the candidates of the other photos of its class.

There are two engines. `moments` is exact, linear in the number of candidates, and works for the paper's squared
Euclidean distance: `photo_moments` of many photos, `sum_moments` over all photos, then `moments_distance`. `faiss`
computes all pairs (`pairwise_sums`), is quadratic, and works for every metric.

In `moments`, candidates are in groups: consecutive rows of one photo and class. A group's result does not depend on
other groups, bit for bit, so a caller may split the rows between any two groups. BLAS is not used, because its order
of additions depends on its threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from scipy import sparse

GRID = 2.0**-16  # a photo's moments are rounded to multiples of this
ROWS = 512  # candidates compared together: 1 MB of float32 at 512 dimensions, which fits in a core's cache
TILE = 2048  # candidates per side of one tile of pairs: 16 MB of float32


def photo_moments(features: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean feature and mean squared norm of every group of candidates: all that Eq. (1) needs from a photo.

    The mean squared norm is computed as `m = |mu|^2 + mean |x - mu|^2`, because a float32 sum of squares would lose the
    spread of features far from the origin. Both are rounded to multiples of GRID. Sums of such numbers are exact in
    float64 up to 2**53 * GRID = 2**37, so a sum over photos does not depend on their order or grouping: the distances
    are bit for bit the same with any number of workers.

    Arguments:
        features: (n, D) floats, computed in float32; a group's rows are contiguous.
        starts: (G,) increasing integers, the first row of each group; the first is 0.
    Returns mu (G, D) and m (G,), float64. Costs n D: two passes over `features`.
    Raises ValueError where a group has no candidate, and on features that are not finite.
    """
    counts = np.diff(starts, append=len(features))
    if (counts < 1).any():
        raise ValueError("a photo without candidates has no moments")
    features = features.astype(np.float32, copy=False)
    # A sparse product adds whole rows one after the other. np.add.reduceat goes down the columns and takes 20 to 60
    # times as long.
    ones = np.ones(len(features), np.float32)
    groups = sparse.csr_array((ones, np.arange(len(ones)), np.append(starts, len(ones))), (len(starts), len(ones)))
    means = _on_grid((groups @ features) / counts[:, None])
    _refuse_non_finite(means)
    scatter = np.add.reduceat(_squared_l2(features, means, np.repeat(np.arange(len(starts)), counts)), starts) / counts
    squares = _on_grid(np.einsum("gd,gd->g", means, means) + scatter)
    _refuse_non_finite(squares)
    return means, squares


def sum_moments(
    classes: np.ndarray, means: np.ndarray, squares: np.ndarray, class_count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of the photos' moments per class. The sums of several sets of photos add up exactly to the sums of all.

    Arguments:
        classes: (G,) integers in 0..C-1, the class of each group.
        means: (G, D) float64, mu of `photo_moments`.
        squares: (G,) float64, m of `photo_moments`.
        class_count: C.
    Returns the number of photos (C,) int64, the sum of mu (C, D) and the sum of m (C,), float64. Costs G D.
    """
    photos = np.bincount(classes, minlength=class_count)
    groups = np.arange(len(classes))
    members = sparse.csr_array((np.ones(len(classes)), (classes, groups)), (class_count, len(classes)))
    return photos, members @ means, np.bincount(classes, weights=squares, minlength=class_count)


def moments_distance(
    features: np.ndarray,
    starts: np.ndarray,
    classes: np.ndarray,
    own: tuple[np.ndarray, np.ndarray],
    sums: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Eq. (1) without pairs, for every candidate x of photo i and class k, with means over k's other photos i':

        dis(x) = |x|^2 - 2 x . mean(mu_i') + mean(m_i') = |x - mean(mu_i')|^2 + (mean(m_i') - |mean(mu_i')|^2)

    The second form is computed, because in the first |x|^2 and x . mean cancel and float32 loses digits.

    Arguments:
        features, starts: see `photo_moments`.
        classes: (G,) integers in 0..C-1, the class of each group.
        own: result of `photo_moments` for these features.
        sums: result of `sum_moments` for all photos, these included.
    Returns (n,) float64, squared feature units, never negative; zeros where the class has no other photo. Costs n D:
    one pass over `features`.
    Raises ValueError on features or moments that are not finite.
    """
    photos, mean_sums, square_sums = sums
    others = photos[classes] - 1
    divisor = np.maximum(others, 1)
    centers = (mean_sums[classes] - own[0]) / divisor[:, None]
    spread = (square_sums[classes] - own[1]) / divisor - np.einsum("gd,gd->g", centers, centers)
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(features)))
    distance = _squared_l2(features.astype(np.float32, copy=False), centers, group) + np.maximum(spread, 0)[group]
    _refuse_non_finite(distance)
    distance[others[group] == 0] = 0
    return distance


def refine_distances(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Eq. (1) for the candidates of one class: their mean squared distance to the candidates of the other photos.

    Arguments:
        features: per photo the features (n_i, D) of its candidates, n_i >= 1.
    Returns (n_i,) float64 per photo; zeros if there is only one photo. Costs the size of the features.
    Raises ValueError where a photo has no candidate, or features are not finite.

    >>> import numpy as np
    >>> near, far = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[3.0, 0.0]])
    >>> [distance.tolist() for distance in refine_distances([near, far])]
    [[9.0, 4.0], [6.5]]
    """
    together = np.concatenate([np.asarray(own, np.float32) for own in features])
    starts = np.concatenate([[0], np.cumsum([len(own) for own in features])[:-1]]).astype(np.int64)
    classes = np.zeros(len(starts), np.int64)
    own = photo_moments(together, starts)
    distance = moments_distance(together, starts, classes, own, sum_moments(classes, *own, 1))
    return np.split(distance, starts[1:])


def _refuse_non_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError(
            "features must be finite, and their squares too (float32): some are infinite, NaN or too large"
        )


def _on_grid(values: np.ndarray) -> np.ndarray:
    return np.rint(values * (1 / GRID)) * GRID


def _squared_l2(features: np.ndarray, centers: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Squared distances (n,) float64 of the rows of `features` from the rows `group` (n,) of `centers`."""
    centers = centers.astype(np.float32)
    apart = np.empty((min(ROWS, len(features)), features.shape[1]), np.float32)
    squared = np.empty(len(features))
    for begin in range(0, len(features), ROWS):
        rows = slice(begin, begin + ROWS)
        part = apart[: len(group[rows])]
        np.take(centers, group[rows], axis=0, out=part, mode="clip")  # mode "raise" buffers `out`
        np.subtract(features[rows], part, out=part)
        squared[rows] = np.einsum("nd,nd->n", part, part)
    return squared


@dataclass(frozen=True)
class Metric:
    """A distance between candidates, for Eq. (1) computed from pairs.

    Arguments:
        pairs: `(queries (q, D), candidates (m, D)) -> distances (q, m)`, all float32.
        prepare: function of the features (n, D) and the mean (D,) of the queries, called before `pairs`.
        nearest: whether the distance to a photo is that to its nearest candidate, not the mean over its candidates.
        factors: whether Eq. (1) can be computed without pairs: see `moments_distance`.
    """

    pairs: Callable[[np.ndarray, np.ndarray], np.ndarray]
    prepare: Callable[[np.ndarray, np.ndarray], np.ndarray]
    nearest: bool = False
    factors: bool = False


def centred(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Features minus a centre: FAISS expands |x - y|^2, and float32 would lose digits with a large common part."""
    return np.ascontiguousarray(features - centre, np.float32)


def unit(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Features scaled to length 1; a zero vector stays a zero vector."""
    features = features.astype(np.float64)
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.where(norm > 0, norm, 1), np.float32)


def _squared_l2_pairs(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    faiss, pairwise = _faiss()
    pairs = pairwise(queries, candidates, metric=faiss.METRIC_L2)
    return np.maximum(pairs, 0, out=pairs)


def _l2_pairs(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    pairs = _squared_l2_pairs(queries, candidates)
    return np.sqrt(pairs, out=pairs)


def _cosine_pairs(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    faiss, pairwise = _faiss()
    pairs = pairwise(queries, candidates, metric=faiss.METRIC_INNER_PRODUCT)
    np.subtract(1, pairs, out=pairs)
    return np.maximum(pairs, 0, out=pairs)


SQUARED_L2 = Metric(_squared_l2_pairs, centred, factors=True)  # Eq. (1)
L2 = Metric(_l2_pairs, centred)  # not squared
COSINE = Metric(_cosine_pairs, unit)  # 1 - cosine; 1 for a zero vector
NEAREST = Metric(_squared_l2_pairs, centred, nearest=True)


def pairwise_sums(
    features: np.ndarray, photo: np.ndarray, block: np.ndarray, owners: np.ndarray, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """Eq. (1) computed from pairs, for one block of a class: the caller adds up the blocks and divides.

    Arguments:
        features: (n, D) floats, candidates of one class, of any photos.
        photo: (n,) integers, the photo of each candidate.
        block: (m, D) floats, candidates of the same class. All candidates of a photo are in one block, in any order.
        owners: (m,) integers, the photo of each candidate of the block.
    Returns the sum of the mean distances to the block's photos, without the candidate's own photo, (n,) float64, and
    the number of these photos (n,) int64. Accurate to float32. Costs n m D; the memory is two copies of the arguments
    and one tile of TILE x TILE pairs (wider where one photo has more candidates).
    Raises ValueError on features that are not finite, ImportError where FAISS is needed and missing.
    """
    total, others = np.zeros(len(features)), np.zeros(len(features), np.int64)
    if len(features) == 0 or len(block) == 0:
        return total, others
    _refuse_non_finite(features)
    _refuse_non_finite(block)
    reduce = np.minimum.reduceat if metric.nearest else np.add.reduceat
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    queries = metric.prepare(features, centre)
    order = np.argsort(owners, kind="stable")
    candidates = metric.prepare(block[order], centre)
    ids, starts, counts = np.unique(owners[order], return_index=True, return_counts=True)
    for tile in _tiles(starts):
        rows = slice(starts[tile[0]], starts[tile[-1]] + counts[tile[-1]])
        for begin in range(0, len(queries), TILE):
            part = slice(begin, begin + TILE)
            pairs = metric.pairs(queries[part], candidates[rows])  # (q, m)
            by_photo = reduce(pairs, starts[tile] - rows.start, axis=1).astype(np.float64)  # (q, photos)
            if not metric.nearest:
                by_photo /= counts[tile]
            other = photo[part, None] != ids[tile]
            total[part] += by_photo.sum(axis=1, where=other)
            others[part] += other.sum(axis=1)
    _refuse_non_finite(total)
    return total, others


def _tiles(starts: np.ndarray) -> list[np.ndarray]:
    """Consecutive whole photos with about TILE candidates together, as positions in `starts`."""
    return np.split(np.arange(len(starts)), np.flatnonzero(np.diff(starts // TILE)) + 1)


def _faiss() -> tuple[Any, Callable[..., Any]]:
    """FAISS, and its function for all pairs, on the GPU if there is one."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("engine 'faiss' needs FAISS: pip install faiss-cpu, or faiss-gpu-cu12 for CUDA") from error
    if faiss.get_num_gpus() > 0:
        return faiss, partial(faiss.pairwise_distance_gpu, _gpu_resources())
    return faiss, faiss.pairwise_distances


@cache
def _gpu_resources() -> object:
    """FAISS's memory on the GPU, more than a gigabyte: once per process, not once per block."""
    import faiss

    return faiss.StandardGpuResources()
