import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from wsseg_ray.proposals.regions import RegionProposals, from_masks
from wsseg_ray.recipe import SupervisionSection
from wsseg_ray.supervision import Evidence
from wsseg_ray.supervision.masks import rough_mask, sure_superpixels

# four superpixels of 1, 2, 1 and 4 pixels
SUPERPIXELS = np.array([[0, 1, 1, 2], [3, 3, 3, 3]])
MEMBERSHIP = sparse.csr_array(np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], np.float32))
REGIONS = RegionProposals(SUPERPIXELS, MEMBERSHIP)


def test_ranks_by_score_and_mean_inside():
    maps = np.array([[1.0, 0.25, 0.25, 0.0]])
    # means inside: 1, 0.5, 0.25, 0
    assert rough_mask(REGIONS, maps, np.zeros((1, 4)), [4], count=1).tolist() == [5, 0, 0, 0]
    assert rough_mask(REGIONS, maps, np.array([[0, 0.75, 0, 0]]), [4], count=1).tolist() == [5, 5, 0, 0]
    assert rough_mask(REGIONS, maps, np.array([[0, 0.5, 0, 0]]), [4], count=1).tolist() == [5, 0, 0, 0]  # a tie
    assert rough_mask(REGIONS, maps, np.zeros((1, 4)), [4], count=3).tolist() == [5, 5, 5, 0]
    assert rough_mask(REGIONS, maps, np.zeros((1, 4)), [4], count=100).tolist() == [5, 5, 5, 5]


def test_overlap_goes_to_the_larger_map_then_to_the_earlier_label():
    maps = np.array([[0.5, 0.5, 0.0, 0.0], [0.5, 0.75, 1.0, 0.0]])
    scores = np.array([[0, 1, 0, 0], [0, 1, 1, 0]])
    assert rough_mask(REGIONS, maps, scores, [7, 2], count=2).tolist() == [8, 3, 3, 0]
    assert rough_mask(REGIONS, maps[::-1], scores[::-1], [2, 7], count=2).tolist() == [3, 3, 3, 0]


def test_a_covered_superpixel_is_no_background_where_the_map_is_zero():
    assert rough_mask(REGIONS, np.zeros((1, 4)), np.eye(4)[3:], [0], count=1).tolist() == [0, 0, 0, 1]


def test_small_regions_are_not_ranked():
    maps, scores = np.array([[1.0, 0.25, 0.25, 0.0]]), np.zeros((1, 4))
    assert rough_mask(REGIONS, maps, scores, [0], count=1, min_area=2 / 8).tolist() == [1, 1, 0, 0]
    assert rough_mask(REGIONS, maps, scores, [0], count=1, min_area=3 / 8).tolist() == [1, 1, 0, 0]
    assert rough_mask(REGIONS, maps, scores, [0], count=1, min_area=4 / 8).tolist() == [0, 0, 0, 1]
    assert rough_mask(REGIONS, maps, scores, [0], count=1, min_area=5 / 8).tolist() == [1, 0, 0, 0]


def test_pools_limit_what_each_class_ranks():
    maps = np.array([[1.0, 0.25, 0.25, 0.0]])
    # means inside: 1, 0.5, 0.25, 0
    for pool in (np.array([3, 2, 1]), np.array([False, True, True, True])):
        assert rough_mask(REGIONS, maps, np.zeros((1, 4)), [4], 1, pools=[pool]).tolist() == [5, 5, 0, 0]
        assert rough_mask(REGIONS, maps, np.array([[9, 0, 0.5, 0]]), [4], 1, pools=[pool]).tolist() == [0, 5, 5, 0]
        assert rough_mask(REGIONS, maps, np.zeros((1, 4)), [4], 10, pools=[pool]).tolist() == [5, 5, 5, 5]
    both = np.array([[1.0, 0.25, 0.25, 0.0], [0.5, 0.5, 0.5, 0.5]])
    pools = [np.array([0]), np.array([3])]
    assert rough_mask(REGIONS, both, np.zeros((2, 4)), [4, 1], 1, pools=pools).tolist() == [5, 0, 0, 2]


def test_equal_regions_of_a_pool_rank_in_the_order_of_the_proposals():
    maps, scores = np.full((1, 4), 0.5), np.zeros((1, 4))
    assert rough_mask(REGIONS, maps, scores, [0], 1, pools=[np.array([3, 2])]).tolist() == [0, 1, 1, 0]


def test_small_regions_of_a_pool_are_ranked_where_it_has_no_larger_one():
    maps, scores = np.array([[1.0, 0.25, 0.25, 0.0]]), np.zeros((1, 4))
    # areas: 1, 3, 3 and 4 of 8 pixels
    assert rough_mask(REGIONS, maps, scores, [0], 1, 3 / 8, pools=[np.array([0, 2])]).tolist() == [0, 1, 1, 0]
    assert rough_mask(REGIONS, maps, scores, [0], 1, 4 / 8, pools=[np.array([0, 2])]).tolist() == [1, 0, 0, 0]


def test_a_class_with_an_empty_pool_has_no_part():
    maps, pools = np.ones((2, 4)), [np.array([], int), np.array([1])]
    assert rough_mask(REGIONS, maps, np.ones((2, 4)), [0, 1], pools=pools).tolist() == [2, 2, 0, 0]
    with pytest.raises(ValueError, match="shorter"):
        rough_mask(REGIONS, maps, np.ones((2, 4)), [0, 1], pools=pools[:1])


def test_map_iou():
    maps, scores = np.array([[0.5, 0.25, 0.1, 0.0]]), np.array([[0, 0, 0, 1.0]])
    # at half of the maximum: superpixels 0 and 1; at 0.6: superpixel 0 alone
    assert rough_mask(REGIONS, maps, scores, [0], 1, ranking="map_iou", threshold=0.5).tolist() == [1, 1, 0, 0]
    assert rough_mask(REGIONS, maps, scores, [0], 1, ranking="map_iou", threshold=0.6).tolist() == [1, 0, 0, 0]
    assert rough_mask(REGIONS, np.zeros((1, 4)), scores, [0], 1, ranking="map_iou").tolist() == [1, 0, 0, 0]


def test_no_class_and_no_proposal():
    assert rough_mask(REGIONS, np.empty((0, 4)), np.empty((0, 4)), []).tolist() == [0, 0, 0, 0]
    empty = RegionProposals(SUPERPIXELS, sparse.csr_array((0, 4), dtype=np.float32))
    for ranking in ("sum", "map_iou"):
        mask = rough_mask(empty, np.ones((1, 4)), np.empty((1, 0)), [0], ranking=ranking)
        assert mask.dtype == np.uint8 and mask.tolist() == [0, 0, 0, 0]


def test_refuses_an_unknown_ranking():
    with pytest.raises(ValueError, match="there are sum, map_iou"):
        rough_mask(REGIONS, np.ones((1, 4)), np.ones((1, 4)), [0], ranking="score")


def brute(masks, maps, scores, labels, count, min_area, ranking, threshold, pools):
    """Sec. 3.3.2 on pixels: masks (N, H, W), maps (K, H, W)."""
    rough = np.zeros(masks.shape[1:], int)
    best = np.full(masks.shape[1:], -1.0)
    for p, s, label, pool in zip(maps, scores, labels, pools, strict=True):
        ranked = [n for n in pool if masks[n].mean() >= min_area] or pool
        located = (p >= threshold * p.max()) & (p > 0)
        if ranking == "sum":
            value = {n: s[n] + p[masks[n]].mean() for n in ranked}
        else:
            value = {n: (masks[n] & located).sum() / (masks[n] | located).sum() for n in ranked}
        covered = np.zeros(masks.shape[1:], bool)
        for n in sorted(ranked, key=lambda n: (-round(value[n], 9), n))[:count]:
            covered |= masks[n]
        wins = covered & (p > best)
        rough[wins], best[wins] = label + 1, p[wins]
    return rough


@settings(max_examples=200)
@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 5), st.integers(1, 5))),
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.sampled_from(["sum", "map_iou"]),
    st.booleans(),
)
def test_equals_dense_pixels(masks, seed, count, min_area, ranking, limited):
    masks[0, 0, 0] = True
    masks = masks[masks.any(axis=(1, 2))]
    regions = from_masks(masks)
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 5, (2, len(regions.areas))) / 4
    scores = rng.random((2, len(masks)))
    pools = [rng.permutation(len(masks))[: rng.integers(len(masks) + 1)] for _ in range(2)] if limited else None
    everything = [np.arange(len(masks))] * 2
    dense = maps[:, regions.superpixels]
    expected = brute(masks, dense, scores, [6, 1], count, min_area, ranking, 0.5, pools or everything)
    found = rough_mask(regions, maps, scores, [6, 1], count, min_area, ranking, 0.5, pools)
    assert (found[regions.superpixels] == expected).all()


def test_what_is_sure_by_hand():
    """At each of the two limits; of equal maps the first label wins."""
    maps = np.array([[0.5, 0.49, 0.25, 0.24, 0.6, 0.1], [0.1, 0.1, 0.1, 0.1, 0.6, 0.7]])
    found = Evidence(None, [7, 2], None, None, None, [], [], maps, lambda: None)
    settings = SupervisionSection(background_below=0.25, object_from=0.5)
    assert sure_superpixels(found, settings).tolist() == [8, 255, 255, 0, 8, 3]
    same = SupervisionSection(background_below=0.5, object_from=0.5)
    assert sure_superpixels(found, same).tolist() == [8, 0, 0, 0, 8, 3], "nothing is unknown"


def test_background_reaches_no_further_than_the_objects():
    with pytest.raises(ValueError, match=r"background_below 0\.6 is more than object_from 0\.5"):
        SupervisionSection(background_below=0.6, object_from=0.5)
