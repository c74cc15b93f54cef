"""Gaussian filtering of points in d dimensions on the permutohedral lattice (Adams, Baek and Davis, 2010).

The lattice holds the integer vectors of length d + 1 that sum to 0 and whose entries leave the same remainder modulo
d + 1. They divide the plane of sum 0 into simplices. A filter has three steps: each point adds its value to the d + 1
corners of its simplex with barycentric weights (splat); the corners are smoothed with (1/2, 1, 1/2) along each of the
d + 1 axes (blur); each point reads its corners with the same weights (slice). The result is approximately the sum over
all pairs of points weighted by exp(-|difference|^2 / 2), times a constant.

Each step is a weighted sum of rows in a fixed order, so the numbers do not depend on the number of threads or on the
other columns that are filtered at the same time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn.functional import embedding_bag

CHUNK = 1 << 14  # points whose simplices are found together: their temporary arrays stay in the cache


class Lattice(NamedTuple):
    """N points and the M corners of their simplices, for N and M below 2^31 / (d + 1).

    Row M of the corners is always zero: it stands for neighbours that do not exist.

    Attributes:
        points: ((d + 1) * N,) int32, the points that splat onto each corner, corner after corner.
        shares: ((d + 1) * N,) float32, the weight of each of these.
        starts: (M + 1,) int32, where each corner begins in `points`.
        neighbours: d + 1 arrays (M + 1, 4) int32, one per axis, in the order of the blur: the corner itself twice and
            its two neighbours. Their plain sum is the blur, times 2.
        corners: (N, d + 1) int32, the corners of each point's simplex.
        weights: (N, d + 1) float32, the barycentric weight of each of these.
    """

    points: torch.Tensor
    shares: torch.Tensor
    starts: torch.Tensor
    neighbours: list[torch.Tensor]
    corners: torch.Tensor
    weights: torch.Tensor


def build(features: torch.Tensor) -> Lattice:
    """The lattice of some points, for a Gaussian of standard deviation 1 in each dimension.

    Arguments:
        features: (d, N) float32, finite, on any device.
    Returns the lattice on that device. Costs one sort of (d + 1) * N integers and d + 1 searches for M sorted ones.
    Memory: 16 bytes per point and corner, and 16 bytes per corner and axis; twice as much during the sort.
    Raises ValueError where the points are so far apart that 64 bits cannot number the corners between them.
    """
    keys, weights, steps = _simplices(features)
    size, count = keys.shape
    corners = torch.empty(size * count, dtype=torch.int32, device=keys.device)
    keys, order = torch.sort(keys.view(-1), stable=True)
    first = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=first[1:])
    corners[order] = first.cumsum(0, dtype=torch.int32).sub_(1)
    starts = first.nonzero().squeeze(1)
    keys = keys[starts]
    return Lattice(
        points=order.int().remainder_(count),
        shares=weights.view(-1)[order],
        starts=torch.cat([starts, starts.new_tensor([size * count])]).int(),
        neighbours=[_neighbours(keys, step) for step in steps],
        corners=corners.view(size, count).T.contiguous(),
        weights=weights.T.contiguous(),
    )


def spread(lattice: Lattice, values: torch.Tensor) -> torch.Tensor:
    """Splat and blur.

    Arguments:
        lattice: of N points with M corners.
        values: (N, C) float32.
    Returns (M + 1, C), the input of `collect`, times 2^(d + 1). Costs (d + 1) * (N + 4 * M) * C additions.
    """
    found = embedding_bag(lattice.points, values, lattice.starts, mode="sum", per_sample_weights=lattice.shares)
    # Given a 2-D input, embedding_bag would compute these starts again for every axis.
    fours = torch.arange(0, 4 * len(found), 4, dtype=torch.int32, device=found.device)
    for neighbours in lattice.neighbours:
        found = embedding_bag(neighbours.view(-1), found, fours, mode="sum")
    return found


def collect(lattice: Lattice, blurred: torch.Tensor, points: slice = slice(None)) -> torch.Tensor:
    """Slice: the filtered values of some of the points.

    Arguments:
        lattice: of N points with M corners.
        blurred: (M + 1, C) float32, from `spread`.
        points: n of the N points.
    Returns (n, C) float32. Costs (d + 1) * n * C additions.
    """
    return embedding_bag(lattice.corners[points], blurred, mode="sum", per_sample_weights=lattice.weights[points])


def _simplices(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Keys (d + 1, N) and weights (d + 1, N) of every point's corners, and the change of a key by a step on each axis.

    A corner k is identified by its d differences (k_j - k_{j+1}) / (d + 1). They are integers and, because k sums to 0,
    unique. The key packs them into one integer. A step along axis j adds d + 1 to k_j and subtracts 1 from every entry,
    so it changes two differences by one and the key by a constant.
    """
    dimensions, count = features.shape
    size = dimensions + 1
    # The blur has a standard deviation of (d + 1) * sqrt(2 / 3) (page 6 of the paper), so features are scaled to it.
    scales = [math.sqrt(2 / 3) * size / math.sqrt((i + 1) * (i + 2)) for i in range(dimensions)]
    lows, strides, dtype = _packing(features, scales)
    steps = [(strides[j] if j < dimensions else 0) - (strides[j - 1] if j else 0) for j in range(size)]
    keys = torch.empty((size, count), dtype=dtype, device=features.device)
    weights = torch.empty((size, count), dtype=torch.float32, device=features.device)
    moves = torch.tensor(steps, dtype=dtype, device=features.device)[:, None]
    for start in range(0, count, CHUNK):
        chunk = slice(start, start + CHUNK)
        nearest, rest, place = _rounded(_elevated(features[:, chunk], scales))
        ordered = torch.empty_like(rest).scatter_(0, place, rest)  # from the smallest to the largest
        weights[0, chunk] = ordered[0] + 1 - ordered[-1]
        torch.sub(ordered[1:], ordered[:-1], out=weights[1:, chunk])
        nearest = nearest.to(dtype)
        key = keys[0, chunk].zero_()
        for j, (low, stride) in enumerate(zip(lows, strides, strict=True)):
            key += (nearest[j] - nearest[j + 1] - low) * stride
        taken = torch.empty(place.shape, dtype=dtype, device=key.device).scatter_(0, place, moves.expand(place.shape))
        for j in range(dimensions):
            torch.sub(keys[j, chunk], taken[j], out=keys[j + 1, chunk])
    return keys, weights, steps


def _packing(features: torch.Tensor, scales: list[float]) -> tuple[list[int], list[int], torch.dtype]:
    """Smallest value and stride of each difference in a key, and the type of the keys."""
    size = len(features) + 1
    ends = torch.stack([features.amin(dim=1), features.amax(dim=1)], dim=1).tolist()
    lows: list[int] = []
    strides: list[int] = []
    total = 1
    for j in reversed(range(size - 1)):
        # Elevated entry j minus entry j + 1 is (j + 2) * feature j minus j * feature (j - 1), each times its scale.
        wide = [(j + 2) * scales[j] * end / size for end in ends[j]]
        back = [-j * scales[j - 1] * end / size for end in ends[j - 1]]
        # The corners of a point are at most 1 away from it in this difference, and their neighbours at most 2.
        low = math.floor(min(wide) + min(back)) - 3
        high = math.ceil(max(wide) + max(back)) + 3
        strides.insert(0, total)
        lows.insert(0, low)
        total *= high - low + 1
    if total >= 2**63:
        raise ValueError(
            "the widths of the kernel must be larger: its lattice has more corners than 64 bits can number"
        )
    return lows, strides, torch.int32 if total < 2**31 else torch.int64


def _elevated(features: torch.Tensor, scales: list[float]) -> torch.Tensor:
    """(d + 1, n): the points on the plane of sum 0, along the orthogonal axes of page 5 of the paper."""
    found = features.new_empty((len(features) + 1, features.shape[1]))
    above = torch.zeros_like(features[0])
    for j in range(len(features), 0, -1):
        scaled = features[j - 1] * scales[j - 1]
        found[j] = above - j * scaled
        above += scaled
    found[0] = above
    return found


def _rounded(elevated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each point's corner of remainder 0, the rest, and the ranks of the rest's entries, smallest first, ties reversed.

    Corner and rest are divided by d + 1. All three are (d + 1, n).
    """
    size = len(elevated)
    rest = elevated / size
    nearest = rest.round()
    rest -= nearest
    rank = nearest.sum(dim=0).to(torch.int8).expand(elevated.shape).contiguous()
    for i in range(size):
        for j in range(i + 1, size):
            less = rest[i] < rest[j]
            rank[i] += less
            rank[j] += less.logical_not_()
    # Rounding can leave the plane. So the entries that were rounded most go one step back: the sum is 0 again.
    wrap = (rank < 0).to(torch.int8).sub_((rank >= size).to(torch.int8))
    nearest += wrap
    rest -= wrap
    return nearest, rest, (size - 1 - rank.add_(wrap, alpha=size)).long()


def _neighbours(keys: torch.Tensor, step: int) -> torch.Tensor:
    """(M + 1, 4) int32: each corner twice and the corners one step before and after it; M: no such corner."""
    count = len(keys)
    found = torch.full((count + 1, 4), count, dtype=torch.int32, device=keys.device)
    found[:, :2] = torch.arange(count + 1, dtype=torch.int32, device=keys.device)[:, None]
    wanted = keys + step
    other = torch.searchsorted(keys, wanted, out_int32=True).clamp_(max=count - 1)
    here = (keys[other] == wanted).nonzero().squeeze(1)
    there = other[here]
    found[here, 2] = there
    found[there, 3] = here.int()
    return found
