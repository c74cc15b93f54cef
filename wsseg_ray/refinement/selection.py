"""Which candidates of a photo and class stay (Sec. 3.2: "the top half")."""

from __future__ import annotations

import math

import numpy as np


def select(
    keep: str,
    fraction: float,
    distance: np.ndarray,
    norm: np.ndarray,
    score: np.ndarray,
    area: np.ndarray,
    seed: list[int],
) -> np.ndarray:
    """Keep `ceil(fraction * n)` candidates of one photo and class.

    Arguments:
        keep: `nearest` or `farthest` by Eq. (1) (the paper's "descending order" is `farthest`), or the controls `norm`
            (largest norm of the feature), `score` (best score), `area` (largest region) and `random`.
        fraction: the share to keep, in (0, 1].
        distance, norm, score, area: (n,) floats.
        seed: what `random` draws from; unlike for every photo and class.
    Returns (n,) bool. Ties keep the earlier candidate. Costs n log n.
    Raises KeyError on an unknown `keep`.
    """
    n = len(distance)
    count = math.ceil(round(fraction * n, 9))  # 0.07 * 100 is 7.000000000000001
    if keep == "random":
        order = np.random.default_rng(seed).permutation(n)
    else:
        cost = {"nearest": distance, "farthest": -distance, "norm": -norm, "score": -score, "area": -area}[keep]
        order = np.argsort(cost, kind="stable")
    kept = np.zeros(n, bool)
    kept[order[: max(count, 1)]] = True
    return kept
