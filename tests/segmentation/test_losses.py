import math

import pytest
import torch

from wsseg_ray.segmentation.losses import hard_cross_entropy, soft_cross_entropy

# One photo, two classes, a grid of 1x3: softmax (1/4, 3/4), (1/2, 1/2), (1/2, 1/2)
LOGITS = torch.tensor([[[[0.0, 0.0, 7.0]], [[math.log(3.0), 0.0, 7.0]]]])


def test_soft_cross_entropy():
    targets = torch.tensor([[[[0.5, 1.0, 0.0]], [[0.5, 0.0, 0.0]]]])
    expected = (0.5 * math.log(4) + 0.5 * math.log(4 / 3) + math.log(2)) / 2
    assert soft_cross_entropy(LOGITS, targets).item() == pytest.approx(expected)


def test_hard_cross_entropy():
    labels = torch.tensor([[[1, 255, 0]]])
    assert hard_cross_entropy(LOGITS, labels).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_nothing_valid_costs_nothing():
    logits = LOGITS.clone().requires_grad_()
    loss = soft_cross_entropy(logits, torch.zeros(1, 2, 1, 3)) + hard_cross_entropy(logits, torch.full((1, 1, 3), 255))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_one_hot_targets_give_the_hard_loss():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(3, (2, 4, 5), generator=generator)
    targets = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    labels[0, 0] = 255
    targets[0, :, 0] = 0
    assert soft_cross_entropy(logits, targets).item() == pytest.approx(hard_cross_entropy(logits, labels).item())


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.rand(2, 3, 2, 2, dtype=torch.float64, generator=generator)
    targets = targets / targets.sum(dim=1, keepdim=True)
    targets[1, :, 0] = 0
    labels = torch.tensor([[[0, 1], [2, 255]], [[1, 1], [0, 2]]])
    assert torch.autograd.gradcheck(lambda x: soft_cross_entropy(x, targets), logits)
    assert torch.autograd.gradcheck(lambda x: hard_cross_entropy(x, labels), logits)
