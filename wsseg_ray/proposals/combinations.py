"""Possible regions: the nodes of all hierarchies, and pairs, triplets and 4-tuples of neighbouring coarse nodes (MCG).

A region is a column of a boolean matrix (S, N): superpixel s lies in region n.
"""

from __future__ import annotations

import higra as hg
import numpy as np

from wsseg_ray.proposals.hierarchies import Partition

COARSE = (100, 20, 10)  # how many of a hierarchy's coarsest nodes form pairs, triplets and 4-tuples
MIN_SHARE, MIN_PIXELS = 0.0005, 12  # smaller regions are fragments


def candidates(parts: Partition, hierarchies: list[hg.Tree], coarse: tuple[int, ...] = COARSE) -> np.ndarray:
    """Nodes and tuples of neighbouring nodes of all trees, holes filled, each region once, without the whole photo.

    Arguments:
        coarse: how many nodes form pairs, triplets, ...; empty: no tuples, only nodes.
    Returns (S, N) bool.
    """
    adjacent = np.eye(len(parts.areas), dtype=bool)
    adjacent[parts.ends] = adjacent[parts.ends[::-1]] = True
    found = []
    for tree in hierarchies:
        members = nodes(tree)
        found += [members, *tuples(members, adjacent, coarse)]
    filled = fill_holes(np.concatenate(found).T.copy(), parts)
    pixels = parts.areas.astype(np.float32) @ filled
    large = filled[:, (pixels >= max(MIN_SHARE * parts.areas.sum(), MIN_PIXELS)) & (pixels < parts.areas.sum())]
    return large[:, distinct(large)]


def nodes(tree: hg.Tree) -> np.ndarray:
    """Superpixels of every node except the root, finest first, single superpixels included, (2 S - 2, S) bool."""
    leaves, parents = tree.num_leaves(), tree.parents()
    members = np.zeros((tree.num_vertices(), leaves), bool)
    members[np.arange(leaves), np.arange(leaves)] = True
    for node in range(tree.num_vertices() - 1):  # children come before their parents
        members[parents[node]] |= members[node]
    return members[:-1]


def tuples(members: np.ndarray, adjacent: np.ndarray, coarse: tuple[int, ...]) -> list[np.ndarray]:
    """Unions of two, three, ... of the coarsest nodes that do not overlap and are connected."""
    members = members[::-1][: max(coarse, default=0)]
    near = (members.astype(np.float32) @ adjacent.astype(np.float32) @ members.T.astype(np.float32)) > 0
    apart = (members.astype(np.float32) @ members.T.astype(np.float32)) == 0
    chosen = np.arange(len(members))[:, None]  # (T, k): the nodes of each tuple
    found: list[np.ndarray] = []
    for count in coarse:
        chosen = chosen[(chosen < count).all(axis=1)]
        fits = near[chosen].any(axis=1) & apart[chosen].all(axis=1)
        fits[:, count:] = False
        which, new = np.nonzero(fits)
        chosen = np.unique(np.sort(np.column_stack([chosen[which], new]), axis=1), axis=0)
        found.append(np.any(members[chosen], axis=1))
    return found


def fill_holes(regions: np.ndarray, parts: Partition) -> np.ndarray:
    """Regions with their holes: superpixels that cannot be reached from the photo's border without crossing the region.

    Goes over the superpixels forwards and backwards, for all regions at once, 64 regions per word.

    Arguments:
        regions: (S, N) bool.
    Returns (S, N) bool.
    """
    count = len(parts.areas)
    outside = np.packbits(np.ascontiguousarray(~regions), axis=1)
    outside = np.pad(outside, ((0, 0), (0, -outside.shape[1] % 8))).view(np.uint64)
    frame = np.concatenate([parts.superpixels[[0, -1]].ravel(), parts.superpixels[:, [0, -1]].ravel()])
    reached = np.zeros_like(outside)
    reached[np.unique(frame)] = outside[np.unique(frame)]
    first, second = np.concatenate([parts.ends, parts.ends[::-1]], axis=1)
    order = np.argsort(first, kind="stable")
    neighbours = np.split(second[order], np.searchsorted(first[order], np.arange(1, count)))
    before = None
    while before is None or (reached != before).any():
        before = reached.copy()
        for sweep in (range(count), range(count - 1, -1, -1)):
            for s in sweep:
                reached[s] |= np.bitwise_or.reduce(reached[neighbours[s]], axis=0) & outside[s]
    return np.unpackbits(~reached.view(np.uint8), axis=1, count=regions.shape[1]).view(bool)


def distinct(regions: np.ndarray) -> np.ndarray:
    """Indices of the columns of (S, N) bool that equal no earlier column, ascending."""
    packed = np.ascontiguousarray(np.packbits(regions, axis=0).T)
    return np.sort(np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_index=True)[1])
