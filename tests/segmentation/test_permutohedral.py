import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsseg_ray.segmentation.permutohedral import build, collect, spread


def matrix(features: torch.Tensor) -> np.ndarray:
    """(N, N): what the filter makes of every unit vector, without the factor that `spread` leaves in."""
    lattice = build(features)
    return collect(lattice, spread(lattice, torch.eye(features.shape[1]))).numpy() / 2 ** len(lattice.neighbours)


def symmetric(kernel: np.ndarray) -> np.ndarray:
    """The kernel, normalised from both sides as the CRF does it."""
    norm = kernel.sum(axis=1) ** -0.5
    return norm[:, None] * kernel * norm


def gaussian(features: np.ndarray) -> np.ndarray:
    """(N, N), exact."""
    return np.exp(-((features[:, :, None] - features[:, None, :]) ** 2).sum(axis=0) / 2)


def nearest(point: np.ndarray) -> np.ndarray:
    """The nearest integer vector of sum 0 to a point of sum 0: round, then undo the worst roundings."""
    found = np.round(point)
    excess = int(found.sum())
    order = np.argsort(point - found)
    found[order[:excess] if excess >= 0 else order[excess:]] -= np.sign(excess)
    return found


def slow(features: np.ndarray) -> np.ndarray:
    """`matrix` by the definition, in float64 and with dictionaries.

    The corners of a point are the nearest lattice points of each remainder, and their weights solve a linear system.
    """
    dimensions, count = features.shape
    size = dimensions + 1
    axes = [np.array([1.0] * i + [-i] + [0.0] * (dimensions - i)) for i in range(1, size)]  # orthogonal, of sum 0
    splat = {}
    for n, point in enumerate(features.T):
        place = sum(x * axis / np.linalg.norm(axis) for x, axis in zip(point, axes, strict=True))
        place = place * size * math.sqrt(2 / 3)
        bases = [np.where(np.arange(size) < size - r, r, r - size) for r in range(size)]
        corners = np.array([base + size * nearest((place - base) / size) for base in bases])
        weights = np.linalg.lstsq(np.vstack([corners.T, np.ones(size)]), np.append(place, 1), rcond=None)[0]
        assert weights.min() > -1e-9
        for corner, weight in zip(corners, weights, strict=True):
            splat.setdefault(tuple(corner), np.zeros(count))[n] += weight
    blurred = splat
    for axis in range(size):
        step = np.full(size, -1.0)
        step[axis] = dimensions
        blurred = {
            corner: row + sum(blurred.get(tuple(corner + sign * step), 0.0) for sign in (1, -1)) / 2
            for corner, row in blurred.items()
        }
    return sum(np.outer(splat[corner], blurred[corner]) for corner in splat)


def drawn(dimensions: int, count: int, width: float, seed: int) -> np.ndarray:
    """(d, N) float64 that float32 holds exactly."""
    features = np.random.default_rng(seed).normal(0, width, (dimensions, count))
    return features.astype(np.float32).astype(np.float64)


@settings(max_examples=60)
@given(
    dimensions=st.integers(1, 6),
    count=st.integers(1, 25),
    width=st.sampled_from([0.01, 0.5, 2.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_is_the_filter_that_the_paper_defines(dimensions, count, width, seed):
    features = drawn(dimensions, count, width, seed)
    found = matrix(torch.from_numpy(features).float())
    assert found == pytest.approx(slow(features), abs=2e-3 if width == 30 else 2e-4)


@pytest.mark.parametrize(
    ("dimensions", "width", "tolerance"), [(1, 1, 0.01), (2, 1, 0.02), (3, 1, 0.03), (5, 1, 0.06), (5, 3, 0.09)]
)
def test_is_about_a_gaussian(dimensions, width, tolerance):
    """A lone point keeps more of its value than it should, since the corners around it are missing."""
    features = drawn(dimensions, 300, width, seed=0)
    values = np.random.default_rng(1).random((300, 4))
    found = symmetric(matrix(torch.from_numpy(features).float())) @ values
    error = found - symmetric(gaussian(features)) @ values
    assert np.sqrt((error**2).mean()) < tolerance


@pytest.mark.parametrize("width", [1, 3, 5])
def test_is_about_a_gaussian_on_a_pixel_grid(width):
    y, x = np.mgrid[:20, :25]
    features = np.stack([x.ravel(), y.ravel()]) / width
    values = np.random.default_rng(1).random((500, 4))
    found = symmetric(matrix(torch.from_numpy(features).float())) @ values
    error = found - symmetric(gaussian(features)) @ values
    assert np.abs(error).max() < 0.06
    assert np.sqrt((error**2).mean()) < 0.012


def test_points_in_one_place_share_their_mean_and_far_ones_nothing():
    features = torch.tensor([[0.0, 0, 0, 100, 100], [7, 7, 7, -50, -50]])
    found = symmetric(matrix(features))
    expected = np.zeros((5, 5))
    expected[:3, :3], expected[3:, 3:] = 1 / 3, 1 / 2
    assert found == pytest.approx(expected, abs=1e-5)


def test_weights_of_a_point_are_shares_of_one():
    lattice = build(torch.from_numpy(drawn(5, 500, 3, seed=0)).float())
    assert lattice.weights.sum(dim=1).numpy() == pytest.approx(1, abs=1e-5)
    assert lattice.weights.min() > -1e-5
    assert len(lattice.corners.unique()) == len(lattice.starts) - 1 == lattice.starts.diff().count_nonzero()


def test_points_are_computed_chunk_by_chunk(monkeypatch):
    features = torch.from_numpy(drawn(5, 200, 2, seed=0)).float()
    whole = build(features)
    monkeypatch.setattr("wsseg_ray.segmentation.permutohedral.CHUNK", 7)
    parts = build(features)
    assert torch.equal(whole.corners, parts.corners) and torch.equal(whole.weights, parts.weights)


def test_numbers_that_need_64_bits():
    """1e5 times 1e5 cells in the plane do not fit 32 bits; either half of the points does."""
    near = drawn(2, 40, 1, seed=0)
    apart = np.where(np.arange(40) < 20, 0, 1e5)
    found = matrix(torch.from_numpy(near + apart).float())
    assert found[:20, :20] == pytest.approx(matrix(torch.from_numpy(near[:, :20]).float()), abs=1e-5)
    assert not found[:20, 20:].any() and not found[20:, :20].any()


def test_refuses_what_64_bits_cannot_number():
    with pytest.raises(ValueError, match="must be larger"):
        build(torch.tensor([[0.0, 1e9]] * 5))


def test_neither_threads_nor_other_columns_change_a_number():
    lattice = build(torch.from_numpy(drawn(5, 20_000, 2, seed=0)).float())
    values = torch.rand(20_000, 23, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = collect(lattice, spread(lattice, values))
        part = collect(lattice, spread(lattice, values[:, 3:10].contiguous()))
        torch.set_num_threads(3)
        three = collect(lattice, spread(lattice, values))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, three) and torch.equal(one[:, 3:10], part)
    assert torch.equal(one[5:9], collect(lattice, spread(lattice, values), slice(5, 9)))
