"""Which candidates of a photo and class are kept (Sec. 3.2: "the top half")."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Candidates(NamedTuple):
    """The candidates of one photo and class, with the numbers that decide which are kept."""

    distance: np.ndarray  # (n,) Eq. (1)
    norm: np.ndarray  # (n,) length of the CNN feature
    score: np.ndarray  # (n,) in 0..1
    area: np.ndarray  # (n,) share of the photo
    seed: Sequence[int]  # different for every photo and class


Keep = Callable[[Candidates], np.ndarray]  # (n,) costs: candidates of the lowest cost are kept


def nearest(candidates: Candidates) -> np.ndarray:
    """The candidates nearest to the candidates of other photos by Eq. (1), as the paper argues."""
    return candidates.distance


def farthest(candidates: Candidates) -> np.ndarray:
    """The farthest candidates by Eq. (1): the paper's "descending order"."""
    return -candidates.distance


def norm(candidates: Candidates) -> np.ndarray:
    """Control: the candidates with the longest feature."""
    return -candidates.norm


def score(candidates: Candidates) -> np.ndarray:
    """Control: the candidates with the best score."""
    return -candidates.score


def area(candidates: Candidates) -> np.ndarray:
    """Control: the largest regions."""
    return -candidates.area


def random(candidates: Candidates) -> np.ndarray:
    """Control: random candidates, drawn from the seed."""
    order = np.random.default_rng(candidates.seed).permutation(len(candidates.distance))
    cost = np.empty(len(order))
    cost[order] = np.arange(len(order))
    return cost


def select(keep: Keep, fraction: float, candidates: Candidates) -> np.ndarray:
    """Keep `ceil(fraction * n)` candidates of one photo and class.

    Arguments:
        keep: one of the functions above, or your own.
        fraction: the share to keep, in (0, 1].
    Returns (n,) bool. Of equal costs the earlier candidate is kept. Costs n log n.
    """
    n = len(candidates.distance)
    count = math.ceil(round(fraction * n, 9))  # 0.07 * 100 is 7.000000000000001
    kept = np.zeros(n, bool)
    kept[np.argsort(keep(candidates), kind="stable")[: max(count, 1)]] = True
    return kept
