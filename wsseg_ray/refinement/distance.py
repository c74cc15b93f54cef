"""Eq. (1): the average distance of a candidate from the candidates of the other photos of its class.

Two engines. `moments` is exact, linear in the number of candidates, and serves the paper's squared Euclidean distance:
`photo_moments` a photo, `sum_moments` over the photos, `moments_distance` a photo. `faiss` computes the pairs
(`pairwise_distance`), quadratic, and serves the metrics that do not factor as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

GRID = 2.0**-16  # what a photo's moments are rounded to
TILE = 2048  # candidates a side of one tile of pairs: 32 MB in float64
METRICS = ("squared_l2", "l2", "cosine", "nearest")


def photo_moments(features: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean feature and mean squared norm of a photo's candidates of one class: all that Eq. (1) asks of a photo.

    Both are rounded to multiples of GRID. Sums of such numbers are exact in float64 up to 2**53 * GRID = 2**37, so a
    sum over photos does not depend on their order or grouping: the distances are bit for bit the same with any number
    of workers.

    Arguments:
        features: (n, D) floats, n > 0.
    Returns mu (D,) float64 and m. Costs n D.
    Raises ValueError where there is no candidate.
    """
    if len(features) == 0:
        raise ValueError("a photo without candidates has no moments")
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    square = np.square(features).sum() / len(features)
    return np.rint(mean / GRID) * GRID, float(np.rint(square / GRID) * GRID)


def sum_moments(
    classes: np.ndarray, means: np.ndarray, squares: np.ndarray, class_count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of the photos' moments, class by class. Sums of parts of the photos add up, exactly, to the sums of all.

    Arguments:
        classes: (R,) integers in 0..C-1, a row a photo and class.
        means: (R, D) float64, mu of `photo_moments`.
        squares: (R,) float64, m of `photo_moments`.
        class_count: C.
    Returns the number of photos (C,) int64, the sum of mu (C, D) and the sum of m (C,), float64. Costs R D.
    """
    photos = np.bincount(classes, minlength=class_count)
    mean_sums = np.zeros((class_count, means.shape[1]))
    np.add.at(mean_sums, classes, means)
    return photos, mean_sums, np.bincount(classes, weights=squares, minlength=class_count)


def moments_distance(
    features: np.ndarray, photos: int, mean_sum: np.ndarray, square_sum: float, own: tuple[np.ndarray, float]
) -> np.ndarray:
    """Eq. (1) without pairs: `dis(x) = |x|^2 - 2 x . mean_{i' != i}(mu_i') + mean_{i' != i}(m_i')`.

    Arguments:
        features: (n, D) floats, the candidates of photo i of class k.
        photos: number of photos of class k, this one included.
        mean_sum: (D,) float64, the sum of mu over them.
        square_sum: the sum of m over them.
        own: mu and m of this photo.
    Returns (n,) float64, squared feature units, never negative; zeros where the class has this photo alone: there
    is no distance. Costs n D.
    """
    if photos == 1:
        return np.zeros(len(features))
    features = features.astype(np.float64)
    mean = (mean_sum - own[0]) / (photos - 1)
    square = (square_sum - own[1]) / (photos - 1)
    # einsum, not @: the order in which BLAS adds depends on its number of threads
    norm = np.einsum("nd,nd->n", features, features)
    return np.maximum(norm - 2 * np.einsum("nd,d->n", features, mean) + square, 0)


def pairwise_distance(
    features: np.ndarray, photo: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], metric: str
) -> np.ndarray:
    """Eq. (1) by its pairs, with FAISS: the mean over the other photos of the mean distance to their candidates.

    Arguments:
        features: (n, D) floats, candidates of one class, of any photos.
        photo: (n,) integers, the photo of each.
        blocks: all candidates of the class, streamed: pairs of features (m, D) and photos (m,). A photo's candidates
            lie in one block, in any order.
        metric: `squared_l2` (the paper), `l2` (not squared), `cosine` (1 - cosine; 1 for a zero vector), or `nearest`
            (a photo counts with the squared distance of its nearest candidate, not with the mean).
    Returns (n,) float64; zeros where there is no other photo. Accurate to float32. Costs n M D for M candidates in
    all; the memory is one block and one tile of TILE x TILE pairs (wider where a photo alone has more candidates).
    Raises ValueError on an unknown metric or a photo that spans two blocks, ImportError where FAISS is not installed.
    """
    if metric not in METRICS:
        raise ValueError(f"metric '{metric}' is none of {', '.join(METRICS)}")
    if len(features) == 0:
        return np.zeros(0)
    distances = _faiss_distances(metric)
    reduce = np.minimum.reduceat if metric == "nearest" else np.add.reduceat
    center = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    queries = _prepare(features, center, metric)
    total = np.zeros(len(features))
    others = np.zeros(len(features), np.int64)
    seen: set[int] = set()
    for block, owners in blocks:
        order = np.argsort(owners, kind="stable")
        candidates = _prepare(block[order], center, metric)
        ids, starts, counts = np.unique(owners[order], return_index=True, return_counts=True)
        if not seen.isdisjoint(ids.tolist()):
            raise ValueError(f"photos {sorted(seen.intersection(ids.tolist()))[:5]} span two blocks")
        seen.update(ids.tolist())
        for tile in _tiles(starts):
            rows = slice(starts[tile[0]], starts[tile[-1]] + counts[tile[-1]])
            for begin in range(0, len(queries), TILE):
                part = slice(begin, begin + TILE)
                pairs = distances(queries[part], candidates[rows])  # (q, m)
                by_photo = reduce(pairs, starts[tile] - rows.start, axis=1)  # (q, photos)
                if metric != "nearest":
                    by_photo /= counts[tile]
                other = photo[part, None] != ids[tile]
                total[part] += by_photo.sum(axis=1, where=other)
                others[part] += other.sum(axis=1)
    return np.divide(total, others, out=np.zeros(len(features)), where=others > 0)


def _tiles(starts: np.ndarray) -> list[np.ndarray]:
    """Runs of whole photos, as positions in `starts`, each of about TILE candidates."""
    if len(starts) == 0:
        return []
    return np.split(np.arange(len(starts)), np.flatnonzero(np.diff(starts // TILE)) + 1)


def _prepare(features: np.ndarray, center: np.ndarray, metric: str) -> np.ndarray:
    """Unit vectors for cosine; else centred, because FAISS expands |x - y|^2 and float32 loses what is common."""
    if metric != "cosine":
        return np.ascontiguousarray(features - center, np.float32)
    features = features.astype(np.float64)
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.where(norm > 0, norm, 1), np.float32)


def _faiss_distances(metric: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The function from (q, D) and (m, D) float32 to (q, m) float64, on the GPU where FAISS finds one."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("engine 'faiss' needs FAISS: pip install faiss-cpu, or faiss-gpu-cu12 for CUDA") from error
    pairwise = faiss.pairwise_distances
    if faiss.get_num_gpus() > 0:
        pairwise = partial(faiss.pairwise_distance_gpu, faiss.StandardGpuResources())

    def distances(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        if metric == "cosine":
            product = pairwise(queries, candidates, metric=faiss.METRIC_INNER_PRODUCT)
            return np.maximum(1 - product.astype(np.float64), 0)
        squared = np.maximum(pairwise(queries, candidates, metric=faiss.METRIC_L2).astype(np.float64), 0)
        return np.sqrt(squared) if metric == "l2" else squared

    return distances
