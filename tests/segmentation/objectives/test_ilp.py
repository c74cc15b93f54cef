import math

import numpy as np
import pytest
import torch
from scipy import sparse

from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.segmentation.objectives.ilp import ilp_loss, image_prior, log_sum_exp_pool, smooth_by_regions


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
    found = image_prior(logits, torch.full((2, 1, 2), 0.5))
    assert found[:, 0, 0].tolist() == pytest.approx([0.375, 0.125])


def test_regions_vote():
    superpixels = np.array([[0, 0, 1, 2]])
    probabilities = np.array([[[0.9, 0.9, 0.3, 0.2]], [[0.1, 0.1, 0.7, 0.8]]])
    regions = RegionProposals(superpixels, sparse.csr_array(np.array([[1, 1, 0], [0, 1, 0]], np.float32)))
    found = smooth_by_regions(probabilities, regions)
    np.testing.assert_allclose(found[0], [[0.7, 0.7, 0.5, 0.2]])  # the last has no region
    np.testing.assert_allclose(found.sum(axis=0), 1)
