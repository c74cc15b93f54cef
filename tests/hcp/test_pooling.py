import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch.nn import functional

from wsseg_ray.hcp.pooling import pool_boxes, pool_context, pool_segments, superpixel_weights, warp_crops
from wsseg_ray.proposals.regions import RegionProposals


def test_warp_of_the_whole_photo_is_bilinear_resizing():
    photo = torch.rand(3, 7, 11, generator=torch.Generator().manual_seed(0))
    crop = warp_crops(photo, np.array([[0, 0, 11, 7]]), 5)
    expected = functional.interpolate(photo[None], (5, 5), mode="bilinear", align_corners=False)
    assert torch.allclose(crop, expected, atol=1e-6)


def test_warp_takes_the_boxes_own_pixels():
    photo = torch.arange(20.0).reshape(1, 4, 5).expand(3, 4, 5)
    crops = warp_crops(photo, np.array([[1, 2, 3, 4], [0, 0, 2, 2]]), 2)
    assert crops.shape == (2, 3, 2, 2)
    assert crops[:, 0].tolist() == [[[11, 12], [16, 17]], [[0, 1], [5, 6]]]
    assert warp_crops(photo, np.empty((0, 4), np.int64), 2).shape == (0, 3, 2, 2)


def test_roi_cells_are_means_of_the_feature_cells_they_cover():
    features = torch.arange(64.0).reshape(1, 8, 8)  # linear, so the mean of 2x2 samples is the value at the centre
    pooled = pool_boxes(features, np.array([[32, 16, 96, 80]]), stride=16, grid=2)
    # the box covers feature cells 2..5 by 1..4; a quarter's centre lies between its four cells
    assert pooled[0, 0].tolist() == [[8 * 1.5 + 2.5, 8 * 1.5 + 4.5], [8 * 3.5 + 2.5, 8 * 3.5 + 4.5]]
    assert pool_boxes(features, np.empty((0, 4), np.int64), 16, 2).shape == (0, 1, 2, 2)


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


@settings(deadline=None, max_examples=50)
@given(photos())
def test_segments_equal_upsampling_and_dense_means(photo):
    regions, features = photo
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


def test_context_is_the_difference_from_the_rest():
    features = torch.tensor([[[1.0, 2.0], [4.0, 7.0]], [[0.0, 0.0], [0.0, 1.0]]])
    members = sparse.csr_array(np.array([[1, 0, 0], [0, 1, 1], [1, 1, 1]], np.float32))
    pooled = pool_context(features, RegionProposals(np.array([[0, 1], [2, 2]]), members))
    np.testing.assert_allclose(pooled[0], [1, 0, 1 - 13 / 3, -1 / 3], rtol=1e-6)
    np.testing.assert_allclose(pooled[1], [13 / 3, 1 / 3, 13 / 3 - 1, 1 / 3], rtol=1e-6)
    assert pooled[2].tolist() == [3.5, 0.25, 0, 0]


def test_gradients_reach_the_feature_map():
    features = torch.zeros(1, 2, 2, requires_grad=True)
    regions = RegionProposals(np.array([[0, 1], [1, 1]]), sparse.csr_array(np.array([[1, 0], [1, 1]], np.float32)))
    pool_segments(features, regions)[0].sum().backward()
    assert features.grad[0].tolist() == [[1, 0], [0, 0]]
    features.grad = None
    pool_boxes(features, np.array([[0, 0, 2, 2]]), stride=1, grid=1).sum().backward()
    assert features.grad[0].tolist() == [[0.25, 0.25], [0.25, 0.25]]
