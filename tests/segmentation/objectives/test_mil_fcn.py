import math

import pytest
import torch

from wsseg_ray.segmentation.objectives.mil_fcn import mil_fcn_loss


def test_by_hand():
    logits = torch.tensor([[[[0.0, math.log(3)]], [[0.0, 0.0]]]])  # background 1/2, 3/4; the class 1/2, 1/4
    assert mil_fcn_loss(logits, torch.tensor([[True, True]])).item() == pytest.approx(
        (math.log(4 / 3) + math.log(2)) / 2
    )
    assert mil_fcn_loss(logits, torch.tensor([[True, False]])).item() == pytest.approx(math.log(4 / 3))


def test_the_best_cell_alone_learns():
    logits = torch.tensor([[[[0.0, 1.0]], [[0.0, 0.0]]]], requires_grad=True)
    mil_fcn_loss(logits, torch.tensor([[True, False]])).backward()
    assert not logits.grad[..., 0].any() and logits.grad[0, 0, 0, 1] < 0 < logits.grad[0, 1, 0, 1]


def test_gradients():
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[True, True, False], [True, False, True]])
    assert torch.autograd.gradcheck(lambda x: mil_fcn_loss(x, present), logits)
