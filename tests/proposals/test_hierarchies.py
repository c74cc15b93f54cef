from collections import defaultdict

import higra as hg
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wsseg_ray.proposals import hierarchies
from wsseg_ray.proposals.hierarchies import arc_features, arc_strengths, looks, partition, trees


def test_partition_of_two_colours():
    grid = hg.get_4_adjacency_graph((6, 10))
    source, target = grid.edge_list()
    crossing = (source % 10 == 3) & (target == source + 1)
    rows = source // 10
    parts = partition(grid, crossing.astype(float), np.array([crossing * 2.0, rows, np.ones(len(rows))]))
    assert parts.superpixels.shape == (6, 10)
    assert len(np.unique(parts.superpixels[:, :4])) == len(np.unique(parts.superpixels[:, 4:])) == 1
    left, right = parts.superpixels[0, [0, -1]]
    assert parts.areas[[left, right]].tolist() == [24, 36]
    assert {int(parts.ends[0][0]), int(parts.ends[1][0])} == {left, right} == {0, 1}
    assert parts.lengths.tolist() == [6]
    assert parts.cues.tolist() == [[2.0], [2.5], [1.0]]


@settings(max_examples=40)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32 - 1))
def test_cues_are_means_along_arcs(height, width, seed):
    random = np.random.default_rng(seed)
    grid = hg.get_4_adjacency_graph((height, width))
    strength, cues = random.integers(0, 4, grid.num_edges()).astype(float), random.random((2, grid.num_edges()))
    if grid.num_edges() == 0:
        return
    parts = partition(grid, strength, cues)
    labels = parts.superpixels.ravel()
    along = defaultdict(list)
    for edge, (source, target) in enumerate(zip(*grid.edge_list(), strict=True)):
        if labels[source] != labels[target]:
            along[frozenset((labels[source], labels[target]))].append(edge)
    assert len(parts.areas) <= max(2, height * width // 30)
    assert parts.areas.tolist() == [(labels == s).sum() for s in range(labels.max() + 1)]
    assert len(parts.lengths) == len(along) and parts.cues.shape == (2, len(along))
    for source, target, length, cue in zip(*parts.ends, parts.lengths, parts.cues.T, strict=True):
        edges = along[frozenset((source, target))]
        assert length == len(edges)
        np.testing.assert_allclose(cue, cues[:, edges].mean(axis=1))


def test_partition_bounds_the_superpixels(monkeypatch):
    monkeypatch.setattr(hierarchies, "MAX_SUPERPIXELS", 7)
    grid = hg.get_4_adjacency_graph((30, 30))
    strength = np.random.default_rng(0).random(grid.num_edges())
    assert len(partition(grid, strength, strength[None]).areas) == 7


def test_looks_of_two_superpixels():
    superpixels = np.array([[0, 0, 0, 1]])
    colours = np.array([[[50, 0, 0], [50, 0, 0], [2, 0, 0], [100, 99, -99]]], np.float32)
    textures = np.zeros((1, 4, 4), np.float32)
    textures[0, 3] = 1.25
    seen = looks(superpixels, np.array([3, 1]), colours, textures)
    np.testing.assert_allclose(seen.colour, [[34, 0, 0], [100, 99, -99]])
    np.testing.assert_allclose(seen.place, [[0, 1 / np.sqrt(17)], [0, 3 / np.sqrt(17)]], rtol=1e-6)
    expected = np.zeros((2, 36))
    expected[0, [6, 0, 12 + 6, 24 + 6]] = np.sqrt([2 / 3, 1 / 3, 1, 1])
    expected[1, [11, 12 + 11, 24]] = 1  # beyond the last bin is in the last
    np.testing.assert_allclose(seen.colours, expected)
    expected = np.zeros((2, 24))
    expected[0, ::6] = expected[1, 2::6] = 1
    np.testing.assert_allclose(seen.textures, expected)


def test_arcs_and_trees():
    random = np.random.default_rng(0)
    grid = hg.get_4_adjacency_graph((20, 30))
    parts = partition(grid, random.random(grid.num_edges()), random.random((6, grid.num_edges())))
    colours, textures = random.random((20, 30, 3), np.float32) * 100, random.random((20, 30, 4), np.float32)
    seen = looks(parts.superpixels, parts.areas, colours, textures)
    features = arc_features(parts, seen)
    assert features.shape == (len(parts.lengths), 6 + 4)
    np.testing.assert_allclose(features[:, :6], np.log(parts.cues.T + 0.01))
    source, target = parts.ends
    apart = np.linalg.norm(seen.colour[source] - seen.colour[target], axis=1)
    np.testing.assert_allclose(features[:, 6], np.log(apart + 0.01))
    np.testing.assert_allclose(np.exp(features[:, 9]), np.minimum(parts.areas[source], parts.areas[target]))
    first = np.zeros((1, 10), np.float32)
    first[0, 0] = 1
    strengths = arc_strengths(parts, seen, [(first, np.zeros(1, np.float32))])
    np.testing.assert_allclose(strengths, 1 / (1 + np.exp(-features[:, 0])), rtol=1e-5)
    found = trees(parts, seen, strengths)
    assert len(found) == 1 + 2 + 1 + 1 + 3
    assert all(
        tree.num_leaves() == len(parts.areas) and tree.num_vertices() == 2 * len(parts.areas) - 1 for tree in found
    )


def test_the_first_tree_merges_by_the_mean_along_contours():
    grid = hg.get_4_adjacency_graph((1, 120))  # four runs of 30 pixels
    source, _ = grid.edge_list()
    strength = np.zeros(len(source))
    strength[[29, 59, 89]] = 0.2, 0.9, 0.1
    parts = partition(grid, strength, np.tile(strength, (5, 1)))
    assert len(parts.areas) == 4
    seen = looks(parts.superpixels, parts.areas, np.zeros((1, 120, 3), np.float32), np.zeros((1, 120, 4), np.float32))
    tree = trees(parts, seen, parts.cues[0])[0]
    a, b, c, d = (tree.parent(int(parts.superpixels[0, x])) for x in (0, 30, 60, 90))
    assert a == b == 5 and c == d == 4
