"""Readings of the scores: by hand, and against the dense definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.supervision import READINGS, Evidence


def evidence(regions: RegionProposals, scores, objectness, kept, dropped, is_mask=None) -> Evidence:
    labels, maps = list(range(len(scores))), np.zeros((len(scores), len(regions.areas)))
    is_mask = np.zeros(len(regions)) if is_mask is None else is_mask
    return Evidence(
        regions,
        labels,
        np.array(scores),
        np.array(objectness),
        is_mask,
        kept,
        dropped,
        maps,
        lambda: None,
    )


def test_votes_count_the_kept_candidates_alone():
    regions = RegionProposals(np.array([[0, 1, 2]]), sparse.csr_array([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]]))
    found = READINGS.get("votes")(evidence(regions, [[9, 9, 9]], np.ones(3), [np.array([0, 1])], [np.array([2])]))
    assert found.tolist() == [[0.5, 1, 0]]


def test_no_proposal_with_a_weight_gives_zero():
    regions = RegionProposals(np.array([[0, 1]]), sparse.csr_array([[1.0, 0], [0, 1]]))
    found = READINGS.get("mean_score")(evidence(regions, [[1, 1]], [1, 0], [np.array([], int)], [np.array([0])]))
    assert found.tolist() == [[0, 0]]


def test_masks_have_four_tenths_of_a_map_and_say_no_where_none_lies():
    regions = RegionProposals(np.array([[0, 1, 2]]), sparse.csr_array([[1.0, 1, 1], [1, 0, 0], [0, 1, 0]]))
    none = [np.array([], int)]
    known = evidence(regions, [[0.5, 0.2, 0.8]], np.ones(3), none, none, np.array([0, 1, 1]))
    np.testing.assert_allclose(READINGS.get("mean_score")(known), [[0.6 + 0.4 * 0.25, 0.6 + 0.4, 0.6]], rtol=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_the_mean_score_is_its_dense_definition(seed):
    rng = np.random.default_rng(seed)
    superpixels = rng.permutation(np.r_[np.arange(6), rng.integers(6, size=14)]).reshape(4, 5)
    membership = (rng.random((9, 6)) < 0.4).astype(np.float32)
    membership[np.arange(9), rng.integers(6, size=9)] = 1
    regions = RegionProposals(superpixels, sparse.csr_array(membership))
    scores, objectness = rng.random((2, 9)), rng.random(9)
    dropped = [rng.permutation(9)[:3], rng.permutation(9)[:1]]
    found = READINGS.get("mean_score")(evidence(regions, scores, objectness, [[], []], dropped))
    for label in range(2):
        for superpixel in range(6):
            total = weight = 0.0
            for n in range(9):
                if membership[n, superpixel] and n not in dropped[label]:
                    own = objectness[n] ** 2 / np.sqrt(np.isin(superpixels, np.flatnonzero(membership[n])).sum())
                    total, weight = total + own * scores[label, n], weight + own
            np.testing.assert_allclose(found[label, superpixel], total / weight if weight else 0, rtol=1e-12)
