import builtins
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsseg_ray.refinement import METRICS, distance
from wsseg_ray.refinement.distance import (
    COSINE,
    GRID,
    L2,
    SQUARED_L2,
    Metric,
    moments_distance,
    pairwise_sums,
    photo_moments,
    refine_distances,
    sum_moments,
)

faiss = pytest.importorskip("faiss")


@pytest.fixture(autouse=True)
def _one_thread():
    """On tiny matrices FAISS's threads wait for each other far longer than they compute."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def dense(photos: list[np.ndarray], i: int, metric: str = "squared_l2") -> np.ndarray:
    """Eq. (1) as it is written, candidate by candidate."""

    def pair(x, y):
        if metric == "cosine":
            norms = np.linalg.norm(x) * np.linalg.norm(y)
            return 1 - x @ y / norms if norms else 1.0
        squared = ((x - y) ** 2).sum()
        return np.sqrt(squared) if metric == "l2" else squared

    reduce = np.min if metric == "nearest" else np.mean
    others = [p.astype(np.float64) for other, p in enumerate(photos) if other != i]
    own = photos[i].astype(np.float64)
    return np.array([np.mean([reduce([pair(x, y) for y in p]) for p in others]) if others else 0 for x in own])


def stack(photos: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All candidates, and where each photo's begin."""
    lengths = [len(p) for p in photos]
    return np.concatenate(photos), np.cumsum([0, *lengths[:-1]])


def by_moments(photos: list[np.ndarray]) -> np.ndarray:
    features, starts = stack(photos)
    classes = np.zeros(len(photos), int)
    own = photo_moments(features, starts)
    return moments_distance(features, starts, classes, own, sum_moments(classes, *own, 1))


def by_pairs(features: np.ndarray, photo: np.ndarray, blocks: list, metric: Metric) -> np.ndarray:
    total, others = map(sum, zip(*(pairwise_sums(features, photo, *block, metric) for block in blocks), strict=True))
    return np.divide(total, others, out=np.zeros(len(features)), where=others > 0)


@st.composite
def photos_of_a_class(draw) -> list[np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dims, scale, offset = draw(st.integers(1, 6)), draw(st.sampled_from([0.5, 3])), draw(st.sampled_from([0, 4]))
    counts = draw(st.lists(st.integers(1, 7), min_size=1, max_size=6))
    return [(rng.normal(size=(n, dims)) * scale + offset).astype(np.float32) for n in counts]


def test_moments_by_hand():
    photos = [np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[4.0, 0.0], [4.0, 2.0]])]
    means, squares = photo_moments(*stack(photos))
    assert means.tolist() == [[1, 0], [0, 1], [4, 1]] and squares.tolist() == [2, 1, 18]
    # from (0, 0): to photo 1 one, to photo 2 the mean of 16 and 20
    assert by_moments(photos)[:2].tolist() == [(1 + 18) / 2, (5 + 6) / 2]


def test_one_photo_has_no_distance():
    features = np.ones((3, 2), np.float32)
    assert by_moments([features]).tolist() == [0, 0, 0]
    assert [distance.tolist() for distance in refine_distances([features])] == [[0, 0, 0]]
    for metric in METRICS.variants():
        assert by_pairs(features, np.zeros(3, int), [(features, np.zeros(3, int))], metric).tolist() == [0] * 3


@pytest.mark.parametrize("starts", [[0, 2, 2], [0, 4], [0, 3, 1]])
def test_a_photo_without_candidates_has_no_moments(starts):
    with pytest.raises(ValueError, match="without candidates"):
        photo_moments(np.ones((4, 3)), np.array(starts))


def test_no_photos():
    features, none = np.empty((0, 3), np.float32), np.empty(0, int)
    means, squares = photo_moments(features, none)
    assert means.shape == (0, 3) and squares.shape == (0,)
    sums = sum_moments(none, means, squares, 2)
    assert [part.tolist() for part in sums] == [[0, 0], [[0] * 3] * 2, [0, 0]]
    assert moments_distance(features, none, none, (means, squares), sums).shape == (0,)


def test_moments_of_equal_candidates_are_not_negative():
    assert (by_moments([np.full((2, 3), 0.1, np.float32)] * 3) >= 0).all()


def test_half_precision_features():
    rng = np.random.default_rng(0)
    photos = [rng.normal(size=(5, 8)).astype(np.float16) for _ in range(4)]
    np.testing.assert_allclose(by_moments(photos)[10:15], dense(photos, 2), rtol=1e-4)


@given(photos_of_a_class())
def test_moments_equal_the_definition(photos):
    expected = np.concatenate([dense(photos, i) for i in range(len(photos))])
    np.testing.assert_allclose(by_moments(photos), expected, rtol=1e-5, atol=1e-3)


@given(photos_of_a_class())
def test_refined_distances_equal_the_definition_photo_by_photo(photos):
    for i, found in enumerate(refine_distances(photos)):
        assert found.dtype == np.float64 and found.shape == (len(photos[i]),)
        np.testing.assert_allclose(found, dense(photos, i), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("bad", [np.empty((0, 2)), np.full((1, 2), np.nan)])
def test_refined_distances_refuse_a_photo_without_candidates_or_numbers(bad):
    for photos in ([np.ones((2, 2)), bad], [bad, np.ones((2, 2))]):
        with pytest.raises(ValueError, match=r"without candidates|must be finite"):
            refine_distances(photos)


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_sums_do_not_depend_on_order_or_grouping(seed, count):
    rng = np.random.default_rng(seed)
    photos = [rng.normal(size=(3, 5)) * 10 ** rng.uniform(-3, 3) for _ in range(count)]
    means, squares = photo_moments(*stack(photos))
    classes = rng.integers(0, 3, count)
    whole = sum_moments(classes, means, squares, 3)
    order = rng.permutation(count)
    parts = [sum_moments(classes[p], means[p], squares[p], 3) for p in np.array_split(order, 3)]
    for k in range(3):
        assert whole[0][k] == (classes == k).sum()
    for together, apart in zip(whole, zip(*parts, strict=True), strict=True):
        assert (together == sum(apart)).all()
    assert (means / GRID == np.rint(means / GRID)).all() and (squares / GRID == np.rint(squares / GRID)).all()


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from([1, 3, 17, 64, 100]), st.sampled_from([1, 7, 512]))
def test_a_photo_does_not_depend_on_the_photos_beside_it(seed, count, dims, rows):
    rng = np.random.default_rng(seed)
    photos = [rng.normal(size=(rng.integers(1, 30), dims)).astype(np.float32) for _ in range(count)]
    classes = rng.integers(0, 3, count)
    features, starts = stack(photos)
    own = photo_moments(features, starts)
    sums = sum_moments(classes, *own, 3)
    together = moments_distance(features, starts, classes, own, sums)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "ROWS", rows)
        alone = [photo_moments(p, np.array([0])) for p in photos]
        for part, whole in zip(zip(*alone, strict=True), own, strict=True):
            assert (np.concatenate(part) == whole).all()
        one = np.array([0])
        apart = [moments_distance(photos[i], one, classes[[i]], alone[i], sums) for i in range(count)]
    assert (np.concatenate(apart) == together).all()


def flatten(photos: list[np.ndarray], numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([photos[i] for i in numbers]), np.repeat(numbers, [len(photos[i]) for i in numbers])


@pytest.mark.parametrize("name", METRICS.names)
@settings(max_examples=40)
@given(photos=photos_of_a_class(), seed=st.integers(0, 1000), tile=st.sampled_from([1, 3, 8, 2048]))
def test_pairs_equal_the_definition_in_any_blocks(name, photos, seed, tile):
    rng = np.random.default_rng(seed)
    features, photo = flatten(photos, list(range(len(photos))))
    blocks = []
    for part in np.array_split(rng.permutation(len(photos)), rng.integers(1, 4)):
        if len(part):
            candidates, owners = flatten(photos, part.tolist())
            shuffled = rng.permutation(len(owners))
            blocks.append((candidates[shuffled], owners[shuffled]))
    blocks.append((np.empty((0, features.shape[1]), np.float32), np.empty(0, int)))
    expected = np.concatenate([dense(photos, i, name) for i in range(len(photos))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "TILE", tile)
        found = by_pairs(features, photo, blocks, METRICS.get(name))
    assert found.dtype == np.float64 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3 if name == "l2" else 1e-5)


@pytest.mark.parametrize("offset", [0, 100])
def test_the_engines_agree(offset):
    rng = np.random.default_rng(1)
    photos = [(rng.normal(size=(n, 64)) + offset).astype(np.float32) for n in (30, 1, 12, 50)]
    features, photo = flatten(photos, [0, 1, 2, 3])
    pairs = by_pairs(features, photo, [(features, photo)], SQUARED_L2)
    np.testing.assert_allclose(pairs, by_moments(photos), rtol=1e-4)


def test_zero_vectors_have_cosine_distance_one():
    features = np.array([[0, 0], [1, 0], [3, 0]], np.float32)
    photo = np.array([0, 1, 2])
    assert by_pairs(features, photo, [(features, photo)], COSINE).tolist() == [1, 0.5, 0.5]


def test_queries_of_some_photos():
    features = np.array([[0.0], [1.0], [5.0]], np.float32)
    photo = np.array([7, 8, 9])
    assert by_pairs(features[1:2], photo[1:2], [(features, photo)], SQUARED_L2).tolist() == [8.5]
    assert by_pairs(features[:0], photo[:0], [(features, photo)], SQUARED_L2).shape == (0,)


def test_sums_and_photos_of_a_block():
    features, photo = np.array([[0.0], [1.0], [5.0]], np.float32), np.array([7, 8, 9])
    total, others = pairwise_sums(features, photo, features[1:], photo[1:], SQUARED_L2)
    assert total.tolist() == [26, 16, 16] and others.tolist() == [2, 1, 1]


def test_only_the_papers_metric_needs_no_pairs():
    assert [name for name in METRICS.names if METRICS.get(name).factors] == ["squared_l2"]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e30])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_refuses_features_that_are_not_finite_or_too_large_to_square(value, kind):
    good = np.array([[1, 2], [3, 4], [5, 6]], kind)
    bad, starts, classes, photo = good.copy(), np.array([0, 2]), np.array([0, 0]), np.array([7, 7, 8])
    bad[1, 1] = value
    own = photo_moments(good, starts)
    sums = sum_moments(classes, *own, 1)
    with pytest.raises(ValueError, match="features must be finite"):
        photo_moments(bad, starts)
    with pytest.raises(ValueError, match="features must be finite"):
        moments_distance(bad, starts, classes, own, sums)
    # Unit vectors and the nearest candidate bear a number that is too large to square.
    for metric in (SQUARED_L2, L2) if np.isfinite(value) else METRICS.variants():
        for features, block in ((bad, good), (good, bad)):
            with pytest.raises(ValueError, match="features must be finite"):
                pairwise_sums(features, photo, block, photo + 5, metric)


def test_the_gpu_serves_where_faiss_finds_one(monkeypatch):
    calls = []

    def on_gpu(resources, xq, xb, D=None, metric=faiss.METRIC_L2, device=-1):
        assert xq.dtype == xb.dtype == np.float32 and xq.flags.c_contiguous and xb.flags.c_contiguous
        calls.append(resources)
        return faiss.pairwise_distances(xq, xb, metric)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "pairwise_distance_gpu", on_gpu, raising=False)
    monkeypatch.setattr(distance, "_gpu_resources", cache(distance._gpu_resources.__wrapped__))
    features, photo = np.array([[0.0], [3.0]], np.float16), np.array([0, 1])
    assert by_pairs(features, photo, [(features, photo)], L2).tolist() == [3, 3]
    assert calls == ["resources"]


def test_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_faiss(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        pairwise_sums(np.ones((1, 1)), np.zeros(1, int), np.ones((1, 1)), np.zeros(1, int), L2)
