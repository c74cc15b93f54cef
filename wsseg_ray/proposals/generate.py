"""Region proposals from the photo alone: no training, no masks, no randomness.

Grouping in the spirit of MCG (Arbeláez, Pont-Tuset et al., CVPR 2014) and Selective Search (Uijlings et al., IJCV
2013): contour strength from colour and texture at three scales, a watershed into superpixels, several hierarchies
over them, each of its own idea of similarity, and as candidates every node and every pair of neighbouring coarse
nodes. A hand-made score with a penalty for overlap puts different, well-bounded regions first. It has neither
gPb's contour detector nor MCG's learned ranking. The constants below were set by hand, looking at how well objects
of about 60 VOC val photos were found: figures on those photos flatter it.
"""

from __future__ import annotations

import higra as hg
import numpy as np
from scipy import ndimage, sparse

from wsseg_ray.proposals.regions import RegionProposals

MAX_SUPERPIXELS = 1000  # more cost time; on VOC 1,000 can draw an object with IoU 0.94
PIXELS_PER_SUPERPIXEL = 30  # of small photos, which have fewer superpixels
SCALES = (1, 3, 8)  # half-window of the contour strength, in pixels of a 500x375 photo
DIAGONAL = 625  # of that photo
XYZ_OF_RGB = np.array(  # linear sRGB to XYZ over the D65 white
    [[0.43395, 0.37621, 0.18984], [0.21267, 0.71515, 0.07218], [0.01775, 0.10947, 0.87278]], np.float32
)
LAB_UNIT = np.array([30, 15, 15], np.float32)  # how far L, a and b spread in photos, roughly
TEXTURE_WEIGHT = 0.5  # log gradients beside the colours
PAIRED = 1 / 16  # share of a hierarchy's nodes, the coarsest, whose pairs are candidates
MIN_SHARE, MIN_PIXELS = 0.001, 12  # smaller regions are fragments
POOL = 4  # best-scored candidates per superpixel that are ranked for diversity; bounds time and memory
OVERLAP_PENALTY = 2.0  # e-folds of objectness that a repetition of an earlier proposal costs


def generate(photo: np.ndarray, count: int) -> tuple[RegionProposals, np.ndarray]:
    """Candidate objects of a photo.

    Arguments:
        photo: (H, W, 3) uint8, RGB.
        count: how many proposals at most; fewer on small or plain photos.

    Costs about 1 s and 200 MB at 500x375, 50 ms at 96x96, on one core.

    Returns the proposals and their objectness, positive, (N,) float32 descending. The whole photo comes last, at 0.
    """
    if (photo == photo[:1, :1]).all():
        return _whole(photo)
    lab = _lab(photo)
    texture = _texture(lab[..., 0])
    grid = hg.get_4_adjacency_graph(photo.shape[:2])
    strengths = _contour_strengths(grid, lab, texture)
    graph, superpixels = _superpixels(grid, strengths)
    areas = np.bincount(superpixels.ravel())
    if len(areas) == 1:
        return _whole(photo)
    lengths = hg.rag_accumulate_on_edges(graph, hg.Accumulators.sum, np.ones(grid.num_edges()))
    contours = [hg.rag_accumulate_on_edges(graph, hg.Accumulators.mean, strength) for strength in strengths]
    trees = _hierarchies(graph, areas, lengths, contours, _appearance(superpixels, areas, lab, texture))
    candidates = _candidates(graph, trees, areas)
    scores = _scores(superpixels, areas, graph, lengths, sum(contours), candidates)
    best = np.argsort(-scores, kind="stable")[: POOL * len(areas)]
    order, objectness = _diverse(candidates[best], areas, scores[best], count)
    membership = candidates[best[order]]
    if len(order) < count:
        membership = sparse.vstack([membership, np.ones((1, len(areas)), np.float32)], format="csr")
        objectness = np.append(objectness, np.float32(0))
    return RegionProposals(superpixels, membership), objectness


def _whole(photo: np.ndarray) -> tuple[RegionProposals, np.ndarray]:
    whole = sparse.csr_array(np.ones((1, 1), np.float32))
    return RegionProposals(np.zeros(photo.shape[:2], np.uint16), whole), np.zeros(1, np.float32)


def _lab(photo: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB, (H, W, 3) float32."""
    rgb = np.arange(256) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4).astype(np.float32)[photo]
    xyz = np.einsum("hwc,dc->hwd", linear, XYZ_OF_RGB)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _texture(lightness: np.ndarray) -> np.ndarray:
    """Log absolute derivatives of the lightness along four directions, (H, W, 4) float32."""
    smooth = ndimage.gaussian_filter(lightness, 0.8)
    down = ndimage.correlate1d(smooth, [-0.5, 0, 0.5], axis=0, mode="nearest")
    right = ndimage.correlate1d(smooth, [-0.5, 0, 0.5], axis=1, mode="nearest")
    derivatives = [right, down, (right + down) / np.sqrt(2), (right - down) / np.sqrt(2)]
    return np.log1p(np.abs(np.stack(derivatives, axis=-1))).astype(np.float32)


def _contour_strengths(grid: hg.UndirectedGraph, lab: np.ndarray, texture: np.ndarray) -> list[np.ndarray]:
    """How much the windows on both sides of an edge of the pixel grid differ, at each scale, of mean 1: (E,) each."""
    height, width = lab.shape[:2]
    colour = ndimage.gaussian_filter(lab, (0.8, 0.8, 0)) / LAB_UNIT
    channels = np.concatenate([colour, TEXTURE_WEIGHT * texture], axis=-1)
    source, target = grid.edge_list()
    horizontal = source // width == target // width
    strengths = []
    for scale in SCALES:
        radius = max(1, round(scale * np.hypot(height, width) / DIAGONAL))
        seen = colour if scale == 1 else channels  # texture has no meaning in a window of one pixel
        strength = np.empty(grid.num_edges())
        strength[horizontal] = _differences(seen, radius, axis=1).ravel()
        strength[~horizontal] = _differences(seen, radius, axis=0).ravel()
        strengths.append(strength / max(strength.mean(), 1e-6))
    return strengths


def _differences(channels: np.ndarray, radius: int, axis: int) -> np.ndarray:
    """Distance of the means before and after each step along an axis, in windows `radius` deep, 2 `radius` + 1 wide."""
    means = ndimage.uniform_filter1d(channels, 2 * radius + 1, axis=1 - axis, mode="nearest")
    means = ndimage.uniform_filter1d(means, radius, axis=axis, mode="nearest")
    last = channels.shape[axis] - 1
    step = np.arange(last)
    before = np.take(means, np.maximum(step - (radius - 1) // 2, 0), axis=axis)
    after = np.take(means, np.minimum(step + 1 + radius // 2, last), axis=axis)
    return np.sqrt(np.square(after - before).sum(axis=-1))


def _superpixels(grid: hg.UndirectedGraph, strengths: list[np.ndarray]) -> tuple[hg.UndirectedGraph, np.ndarray]:
    """Region adjacency graph and label map of the largest basins of the watershed of the two finer scales."""
    shape = hg.CptGridGraph.get_shape(grid)
    tree, altitudes = hg.watershed_hierarchy_by_area(grid, strengths[0] + strengths[1])
    wanted = min(MAX_SUPERPIXELS, max(2, shape[0] * shape[1] // PIXELS_PER_SUPERPIXEL))
    labels = hg.labelisation_horizontal_cut_from_num_regions(tree, altitudes, wanted, "at_most")
    graph = hg.make_region_adjacency_graph_from_labelisation(grid, labels)
    return graph, hg.CptRegionAdjacencyGraph.get_vertex_map(graph).reshape(shape)


def _appearance(superpixels: np.ndarray, areas: np.ndarray, lab: np.ndarray, texture: np.ndarray) -> dict:
    """Mean colour, histograms and place of every superpixel, (S, .) each.

    Histograms are square roots of shares, so that their Euclidean distance is Hellinger's.
    """
    labels = superpixels.ravel()

    def means(channels: np.ndarray) -> np.ndarray:
        columns = [np.bincount(labels, channels[..., c].ravel()) for c in range(channels.shape[-1])]
        return np.stack(columns, axis=1) / areas[:, None]

    def histograms(channels: np.ndarray, low: np.ndarray, high: np.ndarray, bins: int) -> np.ndarray:
        binned = np.clip((channels - low) / (high - low) * bins, 0, bins - 1).astype(np.int64)
        columns = [
            np.bincount(labels * bins + binned[..., c].ravel(), minlength=len(areas) * bins).reshape(-1, bins)
            for c in range(channels.shape[-1])
        ]
        return np.sqrt(np.hstack(columns) / areas[:, None])

    places = np.stack(np.indices(superpixels.shape), axis=-1) / np.hypot(*superpixels.shape)
    return {
        "colour": means(lab) / 30,
        "place": means(places),
        "colours": histograms(lab, np.array([0, -40, -40]), np.array([100, 40, 40]), 12),
        "textures": histograms(texture, np.zeros(4), np.full(4, 3), 6),
    }


def _hierarchies(
    graph: hg.UndirectedGraph, areas: np.ndarray, lengths: np.ndarray, contours: list[np.ndarray], appearance: dict
) -> list[hg.Tree]:
    """Binary partition trees of the superpixels: by what regions look like (Ward), and by the contour between them."""
    colour, place, colours, textures = (appearance[key] for key in ("colour", "place", "colours", "textures"))
    looks = [
        np.hstack([colour, 0.5 * place]),
        np.hstack([colours, textures]),
        np.hstack([colours, textures, 3 * place]),
    ]
    trees = [hg.binary_partition_tree_ward_linkage(graph, look, areas.astype(np.float64))[0] for look in looks]
    source, target = graph.edge_list()
    unlike = np.hypot(*(np.linalg.norm(look[source] - look[target], axis=1) for look in (colours, textures)))
    for contour in (sum(contours), contours[-1], sum(contours) * unlike):
        trees.append(hg.binary_partition_tree_average_linkage(graph, contour, lengths)[0])
    return trees


def _candidates(graph: hg.UndirectedGraph, trees: list[hg.Tree], areas: np.ndarray) -> sparse.csr_array:
    """Nodes of all trees and pairs of neighbouring coarse nodes, (N, S), each region once, without the whole photo."""
    source, target = graph.edge_list()
    neighbours = sparse.coo_array((np.ones(len(source), np.float32), (source, target)), shape=(len(areas),) * 2)
    neighbours = (neighbours + neighbours.T).tocsr()
    found = []
    for tree in trees:
        nodes = _nodes(tree)[:-1]
        coarse = nodes[-max(2, round(PAIRED * len(areas))) :]
        touching = (coarse @ neighbours @ coarse.T).toarray() > 0
        apart = (coarse @ coarse.T).toarray() == 0
        first, second = np.nonzero(np.triu(touching & apart))
        found += [nodes, coarse[first] + coarse[second]]
    candidates = sparse.vstack(found, format="csr")
    shares = candidates @ areas / areas.sum()
    candidates = candidates[(shares >= max(MIN_SHARE, MIN_PIXELS / areas.sum())) & (shares < 1)]
    packed = np.packbits(candidates.toarray() > 0, axis=1)
    unique = np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_index=True)[1]
    return candidates[np.sort(unique)]


def _nodes(tree: hg.Tree) -> sparse.csr_array:
    """Superpixels of every inner node, children before parents, (S - 1, S) float32."""
    leaf_count, parents = tree.num_leaves(), tree.parents()
    leaves = np.arange(leaf_count)
    nodes = parents[leaves]
    rows, columns = [nodes], [leaves]
    while len(leaves := leaves[nodes != tree.root()]):
        nodes = parents[nodes[nodes != tree.root()]]
        rows.append(nodes)
        columns.append(leaves)
    rows, columns = np.concatenate(rows) - leaf_count, np.concatenate(columns)
    shape = (tree.num_vertices() - leaf_count, leaf_count)
    return sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)


def _scores(
    superpixels: np.ndarray,
    areas: np.ndarray,
    graph: hg.UndirectedGraph,
    lengths: np.ndarray,
    contour: np.ndarray,
    candidates: sparse.csr_array,
) -> np.ndarray:
    """How much each candidate looks like an object, (N,), from geometry and contour strength.

    Objects have a strong contour and a calm inside, are compact, fill their box, and neither touch three sides of
    the photo nor make up most of it. Up to 15 % of the photo, larger is likelier.
    """
    height, width = superpixels.shape
    source, target = graph.edge_list()
    edges = np.arange(len(source))
    ends = sparse.csr_array(
        (np.repeat([1.0, -1.0], len(edges)), (np.tile(edges, 2), np.concatenate([source, target]))),
        shape=(len(edges), len(areas)),
    )  # (E, S)
    on_contour = abs(candidates @ ends.T)  # (N, E): 1 where an edge has one end inside
    touched = candidates @ abs(ends).T  # inner edges count 2, those on the contour 1
    outline, outline_strength = on_contour @ lengths, on_contour @ (lengths * contour)
    inner, inner_strength = touched @ lengths - outline, touched @ (lengths * contour) - outline_strength
    regions = RegionProposals(superpixels, candidates)
    x0, y0, x1, y1 = regions.boxes.T
    border = [np.bincount(side, minlength=len(areas)) for side in _sides(superpixels)]
    on_border = np.stack([candidates @ side for side in border], axis=1)  # (N, 4) pixels
    share = regions.region_areas / superpixels.size
    perimeter = outline + on_border.sum(axis=1)
    hugged = (on_border > 0.3 * np.array([width, width, height, height])).sum(axis=1)
    return (
        np.log(outline_strength / outline + 0.1)
        - 0.3 * np.log(inner_strength / np.maximum(inner, 1) + 0.1)
        + 0.3 * np.log(np.minimum(share, 0.15))
        + 0.5 * np.log(regions.region_areas / ((x1 - x0) * (y1 - y0)))
        + 0.2 * np.log(regions.region_areas / perimeter**2)
        - 0.5 * on_border.sum(axis=1) / perimeter
        - 0.5 * (hugged >= 3)
        - 0.7 * (share > 0.7)
    )


def _sides(superpixels: np.ndarray) -> tuple[np.ndarray, ...]:
    return superpixels[0], superpixels[-1], superpixels[:, 0], superpixels[:, -1]


def _diverse(
    candidates: sparse.csr_array, areas: np.ndarray, scores: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum marginal relevance: greedily the candidate with the highest `score - penalty * IoU with those taken`.

    Without it the first hundred are slight variants of the one best region. Costs N^2 floats and `count` passes over N.

    Returns indices, and objectness, the exponential of that value, which never rises; both (min(N, count),).
    """
    dense = candidates.toarray()
    intersection = (dense * areas.astype(np.float32)) @ dense.T
    sizes = intersection.diagonal().copy()
    scores = scores.astype(np.float32)
    overlap = np.zeros(len(scores), np.float32)
    order = np.empty(min(count, len(scores)), np.int64)
    values = np.empty(len(order), np.float32)
    for n in range(len(order)):
        value = scores - OVERLAP_PENALTY * overlap
        best = value.argmax()
        order[n], values[n] = best, value[best]
        scores[best] = -np.inf
        inside = intersection[best]
        np.maximum(overlap, inside / (sizes[best] + sizes - inside), out=overlap)
    return order, np.exp(values)
