import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsseg_ray.hcp.reduction import fit_pca, project


def test_energy_decides_the_number_of_components():
    # variances 90, 9 and 1 along the axes
    sample = np.repeat(np.sqrt([[90, 0, 0], [0, 9, 0], [0, 0, 1]]), 2, axis=0) * np.tile([[1], [-1]], (3, 1))
    for energy, dims, kept in ((0.9, 3, 1), (0.98, 3, 2), (0.995, 3, 3), (0.995, 2, 2), (0.0, 3, 1)):
        mean, components, energy_kept = fit_pca(sample + 5, energy - 1e-6, dims)
        assert len(components) == kept and energy_kept == pytest.approx([0.9, 0.99, 1.0][kept - 1])
        np.testing.assert_allclose(mean, [5, 5, 5], atol=1e-5)
        np.testing.assert_allclose(np.abs(components), np.eye(3)[:kept], atol=1e-5)


@pytest.mark.parametrize("sample", [np.ones((1, 4)), np.full((5, 4), 0.1), np.zeros((2, 1))])
def test_features_without_variance_keep_one_component(sample):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, components, energy = fit_pca(sample, 0.98, 512)
    np.testing.assert_allclose(mean, sample[0], rtol=1e-6)
    assert components.shape == (1, sample.shape[1]) and np.linalg.norm(components) == 1 and energy == 1.0
    assert (project(sample.astype(np.float32), mean, components) == 0).all()


def test_refuses_an_empty_sample_and_what_is_not_finite():
    for sample in (np.empty((0, 3)), np.array([[1.0, np.nan], [0.0, 1.0]])):
        with pytest.raises(ValueError):
            fit_pca(sample, 0.98, 512)


def test_a_wide_sample_is_the_same_every_time():
    sample = np.random.default_rng(0).standard_normal((40, 900)).astype(np.float32)
    first, second = fit_pca(sample, 0.98, 8), fit_pca(sample, 0.98, 8)
    assert first[1].shape == (8, 900) and (first[1] == second[1]).all() and first[2] == second[2] < 0.98


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 8), st.sampled_from([0.5, 0.9, 0.98]))
def test_the_projection_keeps_the_energy_it_says(seed, size, dims, energy):
    sample = np.random.default_rng(seed).standard_normal((size, dims)) * np.arange(1, dims + 1)
    mean, components, kept = fit_pca(sample, energy, dims=512)
    assert kept >= energy - 1e-6 and len(components) <= min(size, dims)
    np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=1e-4)
    projected = project(sample, mean, components)
    np.testing.assert_allclose(projected.var(axis=0).sum() / sample.var(axis=0).sum(), kept, atol=1e-3)
    shorter = np.linalg.svd(sample - sample.mean(axis=0), compute_uv=False)[: len(components) - 1] ** 2
    assert shorter.sum() / ((sample - sample.mean(axis=0)) ** 2).sum() < energy + 1e-4
