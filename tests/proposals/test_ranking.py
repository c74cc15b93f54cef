import higra as hg
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import expit

from wsseg_ray.proposals import ranking
from wsseg_ray.proposals.hierarchies import looks, partition
from wsseg_ray.proposals.ranking import diverse, features


def test_diverse_prefers_what_is_new_to_a_better_repetition():
    regions = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], bool)
    order, objectness = diverse(regions, np.array([9, 1, 5]), np.array([1.0, 0.9, 0.5]), 3)
    assert order.tolist() == [0, 2, 1]
    np.testing.assert_allclose(objectness, expit([1, 0.5, 0]), rtol=1e-6)


def test_diverse_drops_duplicates():
    regions = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], bool)
    scores = np.array([0.9, 1.0, 0.5])
    assert diverse(regions, np.array([96, 4, 5]), scores, 3)[0].tolist() == [1, 2]
    assert diverse(regions, np.array([94, 6, 5]), scores, 3)[0].tolist() == [1, 2, 0]


@pytest.mark.parametrize("count", [0, 5])
def test_diverse_of_nothing(count):
    order, objectness = diverse(np.zeros((4, 0), bool), np.ones(4, int), np.zeros(0), count)
    assert order.shape == objectness.shape == (0,)
    assert order.dtype == np.int64 and objectness.dtype == np.float32


@settings(max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6), st.integers(0, 14), st.sampled_from([1, 3, 9]))
def test_diverse_against_the_definition(seed, rows, columns, count, block):
    random = np.random.default_rng(seed)
    regions = random.random((columns, rows)) < 0.4
    regions[0] = True
    areas, scores = random.integers(1, 99, columns), random.normal(size=rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "BLOCK", block)
        order, objectness = diverse(regions, areas, scores, count)
    assert len(set(order.tolist())) == len(order) == len(objectness) <= count
    assert (objectness > 0).all() and (np.diff(objectness) <= 0).all()
    union = (regions[:, :, None] | regions[:, None]).T @ areas
    iou = (regions[:, :, None] & regions[:, None]).T @ areas / union
    assume((abs(iou - 0.95) > 1e-6).all())  # 19 of 20 pixels: rounding decides whether it is a duplicate

    def values(taken):
        value = scores - iou[:, taken].max(axis=1, initial=0)
        value[(iou[:, taken] > 0.95).any(axis=1)] = -np.inf
        return value

    for place, (candidate, kept) in enumerate(zip(order, objectness, strict=True)):
        value = values(order[:place])
        assert value[candidate] == pytest.approx(value.max(), abs=1e-5)
        assert kept == pytest.approx(expit(value[candidate]), rel=1e-5)
    if len(order) < count:  # all others are duplicates
        assert (values(order) == -np.inf).all()


def test_fewer_are_the_first_of_more():
    regions = np.random.default_rng(0).random((30, 200)) < 0.3
    areas, scores = np.full(30, 10), np.random.default_rng(1).normal(size=200)
    assert diverse(regions, areas, scores, 7)[0].tolist() == diverse(regions, areas, scores, 90)[0][:7].tolist()


def cut(height: int, width: int, random: np.random.Generator):
    """A photo of noise in superpixels."""
    grid = hg.get_4_adjacency_graph((height, width))
    parts = partition(grid, random.random(grid.num_edges()), random.random((5, grid.num_edges())))
    colours = (random.random((height, width, 3)) * 100).astype(np.float32)
    seen = looks(parts.superpixels, parts.areas, colours, random.random((height, width, 4)).astype(np.float32) * 3)
    return parts, seen, random.random(len(parts.lengths))


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(2, 20), st.integers(0, 9), st.sampled_from([2, 2048]), st.integers(0, 2**32 - 1))
def test_features_against_the_definition(height, width, count, chunk, seed):
    random = np.random.default_rng(seed)
    parts, seen, strengths = cut(height, width, random)
    regions = random.random((len(parts.areas), count)) < 0.5
    regions[random.integers(len(parts.areas), size=count), np.arange(count)] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "CHUNK", chunk)
        found = features(parts, seen, strengths, regions)
    assert len(found) == count and found.dtype == np.float32
    assert np.isfinite(found).all()
    cues = np.vstack([strengths, strengths > 0.25, strengths > 0.5, strengths > 0.75, parts.cues])
    look = np.hstack([seen.colour, seen.colours, seen.textures])
    source, target = parts.ends
    for region, row in zip(regions.T, found, strict=True):
        crossing, inner = region[source] != region[target], region[source] & region[target]
        for arcs, part in ((crossing, row[:9]), (inner, row[9:18])):
            weights = parts.lengths * arcs
            np.testing.assert_allclose(part, cues @ weights / max(weights.sum(), 1), atol=1e-4)
        weights = parts.lengths * crossing
        around = (weights[:, None] * look[np.where(region[source], target, source)]).sum(axis=0) / max(weights.sum(), 1)
        unlike = np.abs(around - np.average(look[region], axis=0, weights=parts.areas[region]))
        np.testing.assert_allclose(
            row[27:30], [np.linalg.norm(part) for part in np.split(unlike, [3, 39])], rtol=1e-3, atol=1e-3
        )
        ys, xs = np.nonzero(region[parts.superpixels])
        box = np.ptp(xs) + 1, np.ptp(ys) + 1
        np.testing.assert_allclose(np.exp(row[30]), len(ys) / (height * width), rtol=1e-4)
        np.testing.assert_allclose(row[31], len(ys) / (height * width), rtol=1e-4)
        np.testing.assert_allclose(np.exp(row[32]), len(ys) / (box[0] * box[1]), rtol=1e-4)
        np.testing.assert_allclose(np.exp(row[34]), box[0] / box[1], rtol=1e-4)
        borders = [(xs == 0).sum(), (xs == width - 1).sum(), (ys == 0).sum(), (ys == height - 1).sum()]
        np.testing.assert_allclose(row[37:41], np.array(borders) / [height, height, width, width], rtol=1e-4)
        assert row[41] == np.count_nonzero(borders)
        np.testing.assert_allclose(row[-2:], [box[0] / width, box[1] / height], rtol=1e-4)
