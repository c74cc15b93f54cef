"""From contours to superpixels, and to several hierarchies of them, each with another rule for merging.

Superpixels are the largest basins of a watershed (Cousty et al., PAMI 2009). Each pair of neighbours has a probability,
learned from the human segments of BSDS500, that a person draws a contour between them. Hierarchies merge by the mean of
that probability along the contour, which is an ultrametric contour map (Arbeláez et al., PAMI 2011), by single cues, or
by likeness (Ward). `higra` (Perret et al., SoftwareX 2019) computes them.
"""

from __future__ import annotations

from typing import NamedTuple

import higra as hg
import numpy as np

from wsseg_ray.proposals.learned import Layers, perceive

MAX_SUPERPIXELS = 600
PIXELS_PER_SUPERPIXEL = 30  # limits the superpixels of small photos


class Partition(NamedTuple):
    """A photo cut into S superpixels, neighbours joined by E arcs."""

    superpixels: np.ndarray  # (H, W), 0..S-1
    areas: np.ndarray  # (S,) pixels
    graph: hg.UndirectedGraph  # of S vertices
    ends: tuple[np.ndarray, np.ndarray]  # (E,) each: the superpixels that an arc joins
    lengths: np.ndarray  # (E,) pixel edges along an arc
    cues: np.ndarray  # (K, E): mean contour strength along an arc, by cue


def partition(grid: hg.UndirectedGraph, strength: np.ndarray, cues: np.ndarray) -> Partition:
    """Cut a photo into at most 600 superpixels by the watershed.

    Arguments:
        grid: the 4-adjacency graph of the photo.
        strength: (edges of the grid,): contour strength for the watershed.
        cues: (K, edges of the grid): contour strengths to be averaged along the arcs.
    Costs 0.25 s at 500x375.
    """
    shape = hg.CptGridGraph.get_shape(grid)
    tree, altitudes = hg.watershed_hierarchy_by_volume(grid, strength)
    wanted = min(MAX_SUPERPIXELS, max(2, shape[0] * shape[1] // PIXELS_PER_SUPERPIXEL))
    labels = hg.labelisation_horizontal_cut_from_num_regions(tree, altitudes, wanted, "at_most")
    graph = hg.make_region_adjacency_graph_from_labelisation(grid, labels)
    superpixels = hg.CptRegionAdjacencyGraph.get_vertex_map(graph).reshape(shape)
    arcs = hg.CptRegionAdjacencyGraph.get_edge_map(graph)
    between = arcs >= 0
    arcs = arcs[between]
    lengths = np.bincount(arcs, minlength=graph.num_edges())
    sums = [np.bincount(arcs, cue[between], minlength=graph.num_edges()) for cue in cues]
    return Partition(
        superpixels,
        np.bincount(superpixels.ravel()),
        graph,
        graph.edge_list(),
        lengths,
        np.array(sums).reshape(len(cues), -1) / lengths,
    )


class Looks(NamedTuple):
    """What superpixels look like. Histograms are square roots of shares: their Euclidean distance is Hellinger's."""

    colour: np.ndarray  # (S, 3) mean L*a*b*
    place: np.ndarray  # (S, 2) mean row and column, of a photo of diagonal 1
    colours: np.ndarray  # (S, 36)
    textures: np.ndarray  # (S, 24)


def looks(superpixels: np.ndarray, areas: np.ndarray, colours: np.ndarray, textures: np.ndarray) -> Looks:
    """Mean colour, histograms and place of every superpixel.

    Arguments:
        superpixels, areas: (H, W) and (S,).
        colours, textures: (H, W, 3) and (H, W, 4), see `contours`.
    """
    labels = superpixels.ravel()

    def means(channels: np.ndarray) -> np.ndarray:
        columns = [np.bincount(labels, channels[..., c].ravel()) for c in range(channels.shape[-1])]
        return np.stack(columns, axis=1) / areas[:, None]

    def histograms(channels: np.ndarray, low: list[float], high: list[float], bins: int) -> np.ndarray:
        first, last = np.array(low, np.float32), np.array(high, np.float32)
        binned = np.clip((channels - first) * (bins / (last - first)), 0, bins - 1).astype(np.int32)
        columns = [
            np.bincount(labels * bins + binned[..., c].ravel(), minlength=len(areas) * bins).reshape(-1, bins)
            for c in range(channels.shape[-1])
        ]
        return np.sqrt(np.hstack(columns) / areas[:, None])

    rows, columns = np.indices(superpixels.shape, np.float32) / np.hypot(*superpixels.shape)
    return Looks(
        means(colours),
        means(np.stack([rows, columns], axis=-1)),
        histograms(colours, [0, -40, -40], [100, 40, 40], 12),
        histograms(textures, [0] * 4, [3] * 4, 6),
    )


def arc_features(parts: Partition, seen: Looks) -> np.ndarray:
    """Features of every arc, (E, K + 4): the cues, how much its two sides differ, and the smaller side's size."""
    source, target = parts.ends
    unlike = [
        np.linalg.norm(look[source] - look[target], axis=1) for look in (seen.colour, seen.colours, seen.textures)
    ]
    smaller = np.log(np.minimum(parts.areas[source], parts.areas[target]))
    return np.vstack([np.log(parts.cues + 0.01), np.log(np.array(unlike) + 0.01), smaller]).T


def arc_strengths(parts: Partition, seen: Looks, network: Layers) -> np.ndarray:
    """Probability of a contour along every arc, (E,) float64 in 0..1."""
    return 1 / (1 + np.exp(-perceive(network, arc_features(parts, seen)).astype(np.float64)))


def trees(parts: Partition, seen: Looks, strengths: np.ndarray) -> list[hg.Tree]:
    """Binary partition trees of the superpixels."""
    areas, lengths = parts.areas.astype(np.float64), parts.lengths.astype(np.float64)
    source, target = parts.ends
    unlike = np.hypot(*(np.linalg.norm(look[source] - look[target], axis=1) for look in (seen.colours, seen.textures)))
    weights = [strengths, *parts.cues[[2, 4]], *parts.cues[5:], strengths * unlike]
    histograms = np.hstack([seen.colours, seen.textures])
    vectors = [np.hstack([seen.colour / 30, 2 * seen.place]), histograms, np.hstack([histograms, 6 * seen.place])]
    return [hg.binary_partition_tree_average_linkage(parts.graph, weight, lengths)[0] for weight in weights] + [
        hg.binary_partition_tree_ward_linkage(parts.graph, vector, areas)[0] for vector in vectors
    ]
