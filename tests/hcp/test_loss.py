import math

import pytest
import torch

from wsseg_ray.hcp.loss import cross_entropy_loss, hypothesis_max, label_targets, squared_loss

LOG = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])  # softmax (1/4, 3/4) and (1/2, 1/2)
TARGETS = torch.tensor([[0.0, 1.0], [0.5, 0.5]])


def test_label_targets():
    labels = torch.tensor([[True, False, False], [True, False, True], [False, False, False]])
    assert label_targets(labels).tolist() == [[1, 0, 0], [0.5, 0, 0.5], [0, 0, 0]]


def test_hypothesis_max():
    logits = torch.tensor([[[1.0, 5.0], [3.0, 2.0], [3.0, 0.0]]], requires_grad=True)
    assert hypothesis_max(logits).tolist() == [[3, 5]]
    hypothesis_max(logits).sum().backward()
    assert logits.grad.tolist() == [[[0, 1], [0.5, 0], [0.5, 0]]]


def test_squared_loss():
    assert squared_loss(LOG, TARGETS).item() == pytest.approx((1 / 16 + 1 / 16) / 2)


def test_cross_entropy_loss():
    assert cross_entropy_loss(LOG, TARGETS).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


@pytest.mark.parametrize("loss", [squared_loss, cross_entropy_loss])
def test_gradients(loss):
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits)
