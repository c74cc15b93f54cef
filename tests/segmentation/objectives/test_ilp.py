import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.segmentation.objectives.ilp import (
    ilp_loss,
    image_prior,
    log_sum_exp_pool,
    smooth_by_boxes,
    smooth_by_regions,
    smooth_by_superpixels,
)


def test_pooling_lies_between_mean_and_maximum():
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    pooled = log_sum_exp_pool(logits)
    assert (pooled >= logits.mean(dim=(2, 3))).all() and (pooled <= logits.amax(dim=(2, 3))).all()
    assert log_sum_exp_pool(torch.full((1, 1, 3, 3), 2.0)).item() == pytest.approx(2)
    assert log_sum_exp_pool(torch.tensor([[[[0.0, math.log(3)]]]]), 1.0).item() == pytest.approx(math.log(2))


def test_loss_by_hand():
    logits = torch.tensor([[[[math.log(3)]], [[0.0]], [[0.0]]]])
    assert ilp_loss(logits, torch.tensor([[True, False, False]])).item() == pytest.approx(math.log(5 / 3))
    both = (math.log(5 / 3) + math.log(5)) / 2
    assert ilp_loss(logits, torch.tensor([[True, True, False]])).item() == pytest.approx(both)


def test_gradients():
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[True, True, False], [True, False, True]])
    assert torch.autograd.gradcheck(lambda x: ilp_loss(x, present).double(), logits)


def test_the_prior_weighs_classes():
    logits = torch.tensor([[[math.log(3)]], [[0.0]]])
    found = image_prior([logits], torch.full((2, 1, 2), 0.5))
    assert found[:, 0, 0].tolist() == pytest.approx([0.75, 0.25])
    flat = image_prior([logits, -logits], torch.full((2, 1, 2), 0.5))  # two views that say the opposite
    assert flat[:, 0, 0].tolist() == pytest.approx([0.5, 0.5])


def test_regions_vote():
    superpixels = np.array([[0, 0, 1, 2]])
    probabilities = np.array([[[0.9, 0.9, 0.3, 0.2]], [[0.1, 0.1, 0.7, 0.8]]])
    regions = RegionProposals(superpixels, sparse.csr_array(np.array([[1, 1, 0], [0, 1, 0]], np.float32)))
    found = smooth_by_regions(probabilities, regions)
    np.testing.assert_allclose(found[0], [[0.7, 0.7, 0.5, 0.2]])  # the last has no region
    np.testing.assert_allclose(found.sum(axis=0), 1)


def test_a_superpixel_is_its_mean():
    regions = RegionProposals(np.array([[0, 0, 1, 2]]), sparse.csr_array(np.ones((1, 3), np.float32)))
    probabilities = np.array([[[0.9, 0.5, 0.3, 0.2]], [[0.1, 0.5, 0.7, 0.8]]])
    np.testing.assert_allclose(smooth_by_superpixels(probabilities, regions)[0], [[0.7, 0.7, 0.3, 0.2]])


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_boxes_vote_as_in_a_loop_over_them(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 9, 2)
    flat = rng.permutation(np.concatenate([np.arange(4), rng.integers(0, 4, height * width - 4)]))
    membership = rng.random((rng.integers(1, 6), 4)) < 0.4
    membership[:, 0] |= ~membership.any(axis=1)
    regions = RegionProposals(flat.reshape(height, width), sparse.csr_array(membership.astype(np.float32)))
    probabilities = rng.dirichlet(np.ones(3), (height, width)).transpose(2, 0, 1)
    votes = np.zeros_like(probabilities)
    for x0, y0, x1, y1 in regions.boxes:
        votes[:, y0:y1, x0:x1] += probabilities[:, y0:y1, x0:x1].mean(axis=(1, 2))[:, None, None]
    held = votes.sum(axis=0) > 0
    expected = np.where(held, votes / np.where(held, votes.sum(axis=0), 1), probabilities)
    np.testing.assert_allclose(smooth_by_boxes(probabilities, regions), expected, atol=1e-9)
