import higra as hg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wsseg_ray.proposals.combinations import candidates, distinct, fill_holes, nodes, tuples
from wsseg_ray.proposals.hierarchies import Partition

ROW = np.eye(4, dtype=bool) | np.eye(4, k=1, dtype=bool) | np.eye(4, k=-1, dtype=bool)  # neighbours in a row of 4


def blocks(rows: int, columns: int, side: int = 1) -> Partition:
    """A photo whose superpixels are squares of `side` x `side` pixels."""
    superpixels = np.kron(np.arange(rows * columns).reshape(rows, columns), np.ones((side, side), int))
    graph = hg.get_4_adjacency_graph((rows, columns))
    lengths = np.full(graph.num_edges(), side)
    return Partition(superpixels, np.bincount(superpixels.ravel()), graph, graph.edge_list(), lengths, lengths[None])


def as_sets(regions: np.ndarray) -> list[tuple[int, ...]]:
    return sorted(tuple(np.flatnonzero(region).tolist()) for region in regions)


class Tree:
    """Leaves 0, 1, 2; node 3 of 0 and 1; node 4, the root, of 3 and 2."""

    def num_leaves(self):
        return 3

    def num_vertices(self):
        return 5

    def parents(self):
        return np.array([3, 3, 4, 4, 4])


def test_nodes_list_their_superpixels():
    assert as_sets(nodes(Tree())[:3]) == [(0,), (1,), (2,)]
    assert nodes(Tree())[3:].tolist() == [[True, True, False]]


def test_tuples_of_a_row():
    pairs, triplets, quadruples = tuples(np.eye(4, dtype=bool), ROW, (4, 4, 4))
    assert as_sets(pairs) == [(0, 1), (1, 2), (2, 3)]
    assert as_sets(triplets) == [(0, 1, 2), (1, 2, 3)]
    assert as_sets(quadruples) == [(0, 1, 2, 3)]


def test_tuples_take_the_coarsest_nodes():
    pairs, triplets = tuples(np.eye(4, dtype=bool), ROW, (3, 2))  # the coarsest come last
    assert as_sets(pairs) == [(1, 2), (2, 3)]
    assert as_sets(triplets) == []
    assert tuples(np.eye(4, dtype=bool), ROW, ()) == []


def test_tuples_do_not_overlap():
    members = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0]], bool)
    pairs, triplets = tuples(members, ROW, (3, 3))
    assert as_sets(pairs) == as_sets(triplets) == []
    members[1, 2] = True
    assert as_sets(tuples(members, ROW, (3,))[0]) == [(0, 1, 2, 3)]


def test_a_ring_is_filled():
    ring = np.zeros((5, 6), bool)
    ring[1:4, 1:4] = True
    filled = ring.copy()
    ring[2, 2] = False
    broken = ring.copy()
    broken[2, 3] = False
    regions = np.stack([ring, broken, ~ring], axis=-1).reshape(30, 3)
    expected = np.stack([filled, broken, np.ones((5, 6), bool)], axis=-1).reshape(30, 3)  # the ring is a hole too
    assert (fill_holes(regions, blocks(5, 6)) == expected).all()


@settings(max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(0, 70),
    st.sampled_from([0.3, 0.6, 0.8]),
    st.integers(0, 2**32 - 1),
)
def test_holes_are_what_scipy_fills(rows, columns, side, count, share, seed):
    masks = np.random.default_rng(seed).random((count, rows, columns)) < share
    found = fill_holes(masks.reshape(count, rows * columns).T, blocks(rows, columns, side))
    assert found.shape == (rows * columns, count) and found.dtype == bool
    for mask, region in zip(masks, found.T, strict=True):
        assert (region.reshape(rows, columns) == ndimage.binary_fill_holes(mask)).all()


def test_distinct_keeps_the_first_of_equal_columns():
    regions = np.array([[1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 1]] * 5, bool)
    assert distinct(regions).tolist() == [0, 1, 4]


@pytest.mark.parametrize("coarse", [(), (6, 4)])
def test_candidates_are_different_parts_of_the_photo(coarse):
    parts = blocks(4, 5, side=4)
    weights = np.random.default_rng(0).random((2, parts.graph.num_edges()))
    hierarchies = [hg.binary_partition_tree_average_linkage(parts.graph, weight)[0] for weight in weights]
    found = candidates(parts, hierarchies, coarse)
    assert len(found) == 20 and found.dtype == bool
    assert len(distinct(found)) == found.shape[1]
    assert found.any(axis=0).all() and not found.all(axis=0).any()
    sets = set(as_sets(found.T))
    expected = np.concatenate([nodes(tree) for tree in hierarchies])
    filled = {tuple(np.flatnonzero(ndimage.binary_fill_holes(node.reshape(4, 5))).tolist()) for node in expected}
    filled.discard(tuple(range(20)))
    assert filled == sets if not coarse else filled < sets


def test_fragments_are_no_candidates():
    parts = blocks(1, 8)  # 8 pixels
    tree = hg.binary_partition_tree_average_linkage(parts.graph, np.arange(7.0))[0]
    assert candidates(parts, [tree]).shape == (8, 0)
