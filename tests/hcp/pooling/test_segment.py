from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch.nn import functional

from wsseg_ray.hcp.pooling import sums
from wsseg_ray.hcp.pooling.segment import SEGMENT, pool_segments
from wsseg_ray.hcp.pooling.sums import superpixel_weights
from wsseg_ray.proposals.regions import RegionProposals


def test_superpixel_weights_by_hand():
    weights = superpixel_weights(np.array([[0, 0, 1, 1]]), 1, 2)
    # the four pixels see cell 0 with 1, 3/4, 1/4, 0
    assert weights.toarray().tolist() == [[1.75, 0.25], [0.25, 1.75]] and weights.dtype == np.float32


@st.composite
def photos(draw):
    height, width, h, w, count = (draw(st.integers(1, 9)) for _ in range(5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    _, superpixels = np.unique(rng.integers(count, size=(height, width)), return_inverse=True)
    superpixels = superpixels.reshape(height, width)
    membership = rng.random((draw(st.integers(0, 4)), superpixels.max() + 1)) < 0.5
    membership = membership[membership.any(axis=1)]
    regions = RegionProposals(superpixels, sparse.csr_array(membership, dtype=np.float32))
    return regions, torch.from_numpy(rng.standard_normal((2, h, w)))


@settings(max_examples=50)
@given(photos(), st.sampled_from([1, 30, sums.BAND]))
def test_segments_equal_upsampling_and_dense_means(photo, band):
    """Also in bands of few rows of cells, as large photos are gone through."""
    regions, features = photo
    with mock.patch.object(sums, "BAND", band):
        assert_equal_to_upsampling(regions, features)


def assert_equal_to_upsampling(regions: RegionProposals, features: torch.Tensor) -> None:
    height, width = regions.superpixels.shape
    dense = functional.interpolate(features[None], (height, width), mode="bilinear", align_corners=False)[0].numpy()
    sums = np.zeros((len(regions.areas), 2))
    np.add.at(sums, regions.superpixels, dense.transpose(1, 2, 0))
    weights = superpixel_weights(regions.superpixels, *features.shape[1:])
    np.testing.assert_allclose(weights @ features.flatten(1).T.numpy(), sums, atol=1e-4)
    expected = [dense[:, regions.mask(n)].mean(axis=1) for n in range(len(regions))]
    pooled = pool_segments(features, regions)
    assert pooled.shape == (len(regions), 2) and pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled.numpy(), np.reshape(expected, (-1, 2)), atol=1e-5)


def test_the_whole_photo_has_one_mean():
    maps = torch.zeros(1, 96, 6, 6)
    maps[0, 0, 0, 0] = 4.0
    assert SEGMENT.whole(None, maps)[0, :2].tolist() == [pytest.approx(4 / 36), 0]


def test_folded_fc6_answers_as_the_whole_one_on_a_constant_grid():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 512 * 7 * 7, generator=generator, dtype=torch.float64)
    segment = torch.rand(3, 512, generator=generator, dtype=torch.float64)
    grid = segment[:, :, None, None].expand(3, 512, 7, 7)
    assert torch.allclose(segment @ SEGMENT.convert_fc6(weight).T, grid.flatten(1) @ weight.T)


def test_gradients_reach_the_feature_map():
    features = torch.zeros(1, 2, 2, requires_grad=True)
    regions = RegionProposals(np.array([[0, 1], [1, 1]]), sparse.csr_array(np.array([[1, 0], [1, 1]], np.float32)))
    pool_segments(features, regions)[0].sum().backward()
    assert features.grad[0].tolist() == [[1, 0], [0, 0]]
