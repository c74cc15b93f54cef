import builtins

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsseg_ray.refinement import distance
from wsseg_ray.refinement.distance import (
    GRID,
    METRICS,
    moments_distance,
    pairwise_distance,
    photo_moments,
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


def by_moments(photos: list[np.ndarray], i: int) -> np.ndarray:
    moments = [photo_moments(p) for p in photos]
    mean_sum = np.sum([mean for mean, _ in moments], axis=0)
    square_sum = sum(square for _, square in moments)
    return moments_distance(photos[i], len(photos), mean_sum, square_sum, moments[i])


@st.composite
def photos_of_a_class(draw) -> list[np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dims, scale, offset = draw(st.integers(1, 6)), draw(st.sampled_from([0.5, 3])), draw(st.sampled_from([0, 4]))
    counts = draw(st.lists(st.integers(1, 7), min_size=1, max_size=6))
    return [(rng.normal(size=(n, dims)) * scale + offset).astype(np.float32) for n in counts]


def test_moments_by_hand():
    photos = [np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[4.0, 0.0], [4.0, 2.0]])]
    mean, square = photo_moments(photos[2])
    assert mean.tolist() == [4, 1] and square == 18
    # from (0, 0): to photo 1 one, to photo 2 the mean of 16 and 20
    assert by_moments(photos, 0).tolist() == [(1 + 18) / 2, (5 + 6) / 2]


def test_one_photo_has_no_distance():
    features = np.ones((3, 2), np.float32)
    assert by_moments([features], 0).tolist() == [0, 0, 0]
    for metric in METRICS:
        assert pairwise_distance(features, np.zeros(3, int), [(features, np.zeros(3, int))], metric).tolist() == [0] * 3


def test_a_photo_without_candidates_has_no_moments():
    with pytest.raises(ValueError, match="without candidates"):
        photo_moments(np.empty((0, 4)))


def test_moments_of_equal_candidates_are_not_negative():
    photos = [np.full((2, 3), 0.1, np.float32)] * 3
    assert (by_moments(photos, 1) >= 0).all()


def test_half_precision_features():
    rng = np.random.default_rng(0)
    photos = [rng.normal(size=(5, 8)).astype(np.float16) for _ in range(4)]
    np.testing.assert_allclose(by_moments(photos, 2), dense(photos, 2), rtol=1e-4)


@settings(deadline=None)
@given(photos_of_a_class())
def test_moments_equal_the_definition(photos):
    for i in range(len(photos)):
        np.testing.assert_allclose(by_moments(photos, i), dense(photos, i), rtol=1e-5, atol=1e-3)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_sums_do_not_depend_on_order_or_grouping(seed, count):
    rng = np.random.default_rng(seed)
    moments = [photo_moments(rng.normal(size=(3, 5)) * 10 ** rng.uniform(-3, 3)) for _ in range(count)]
    means, squares = np.array([mean for mean, _ in moments]), np.array([square for _, square in moments])
    classes = rng.integers(0, 3, count)
    whole = sum_moments(classes, means, squares, 3)
    order = rng.permutation(count)
    parts = [sum_moments(classes[p], means[p], squares[p], 3) for p in np.array_split(order, 3)]
    for k in range(3):
        assert whole[0][k] == (classes == k).sum()
    for together, apart in zip(whole, zip(*parts, strict=True), strict=True):
        assert (together == sum(apart)).all()
    assert (means / GRID == np.rint(means / GRID)).all() and (squares / GRID == np.rint(squares / GRID)).all()


def flatten(photos: list[np.ndarray], numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([photos[i] for i in numbers]), np.repeat(numbers, [len(photos[i]) for i in numbers])


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None, max_examples=40)
@given(photos=photos_of_a_class(), seed=st.integers(0, 1000), tile=st.sampled_from([1, 3, 8, 2048]))
def test_pairs_equal_the_definition_in_any_blocks(metric, photos, seed, tile):
    rng = np.random.default_rng(seed)
    features, photo = flatten(photos, list(range(len(photos))))
    blocks = []
    for part in np.array_split(rng.permutation(len(photos)), rng.integers(1, 4)):
        if len(part):
            candidates, owners = flatten(photos, part.tolist())
            shuffled = rng.permutation(len(owners))
            blocks.append((candidates[shuffled], owners[shuffled]))
    blocks.append((np.empty((0, features.shape[1]), np.float32), np.empty(0, int)))
    expected = np.concatenate([dense(photos, i, metric) for i in range(len(photos))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "TILE", tile)
        found = pairwise_distance(features, photo, iter(blocks), metric)
    assert found.dtype == np.float64 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3 if metric == "l2" else 1e-5)


@pytest.mark.parametrize("offset", [0, 100])
def test_the_engines_agree(offset):
    rng = np.random.default_rng(1)
    photos = [(rng.normal(size=(n, 64)) + offset).astype(np.float32) for n in (30, 1, 12, 50)]
    features, photo = flatten(photos, [0, 1, 2, 3])
    moments = np.concatenate([by_moments(photos, i) for i in range(4)])
    np.testing.assert_allclose(
        pairwise_distance(features, photo, [(features, photo)], "squared_l2"), moments, rtol=1e-4
    )


def test_zero_vectors_have_cosine_distance_one():
    features = np.array([[0, 0], [1, 0], [3, 0]], np.float32)
    photo = np.array([0, 1, 2])
    assert pairwise_distance(features, photo, [(features, photo)], "cosine").tolist() == [1, 0.5, 0.5]


def test_queries_of_some_photos():
    features = np.array([[0.0], [1.0], [5.0]], np.float32)
    photo = np.array([7, 8, 9])
    assert pairwise_distance(features[1:2], photo[1:2], [(features, photo)], "squared_l2").tolist() == [8.5]
    assert pairwise_distance(features[:0], photo[:0], [(features, photo)], "squared_l2").shape == (0,)


def test_refuses_a_photo_in_two_blocks_and_an_unknown_metric():
    features, photo = np.ones((2, 2), np.float32), np.array([3, 4])
    with pytest.raises(ValueError, match=r"\[4\] span two blocks"):
        pairwise_distance(features, photo, [(features, photo), (features[1:], photo[1:])], "l2")
    with pytest.raises(ValueError, match="manhattan"):
        pairwise_distance(features, photo, [(features, photo)], "manhattan")


def test_the_gpu_serves_where_faiss_finds_one(monkeypatch):
    calls = []

    def on_gpu(resources, xq, xb, D=None, metric=faiss.METRIC_L2, device=-1):
        assert xq.dtype == xb.dtype == np.float32 and xq.flags.c_contiguous and xb.flags.c_contiguous
        calls.append(resources)
        return faiss.pairwise_distances(xq, xb, metric)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "pairwise_distance_gpu", on_gpu, raising=False)
    features, photo = np.array([[0.0], [3.0]], np.float16), np.array([0, 1])
    assert pairwise_distance(features, photo, [(features, photo)], "l2").tolist() == [3, 3]
    assert calls == ["resources"]


def test_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_faiss(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        pairwise_distance(np.ones((1, 1)), np.zeros(1, int), [], "l2")
