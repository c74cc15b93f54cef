import math

import pytest
import torch

from wsseg_ray.segmentation.losses import class_weights, hard_cross_entropy, soft_cross_entropy

# One photo, two classes, a grid of 1x3: softmax (1/4, 3/4), (1/2, 1/2), (1/2, 1/2)
LOGITS = torch.tensor([[[[0.0, 0.0, 7.0]], [[math.log(3.0), 0.0, 7.0]]]])


def test_soft_cross_entropy():
    targets = torch.tensor([[[[0.5, 1.0, 0.0]], [[0.5, 0.0, 0.0]]]])
    expected = (0.5 * math.log(4) + 0.5 * math.log(4 / 3) + math.log(2)) / 2
    assert soft_cross_entropy(LOGITS, targets).item() == pytest.approx(expected)


def test_hard_cross_entropy():
    labels = torch.tensor([[[1, 255, 0]]])
    assert hard_cross_entropy(LOGITS, labels).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_weights_of_classes():
    weights = class_weights([80, 20, 0], 0.5)
    raw = torch.tensor([(101 / 80) ** 0.5, (101 / 20) ** 0.5, 101**0.5])
    assert torch.allclose(weights, raw * 101 / (raw * torch.tensor([80, 20, 1])).sum())
    assert (80 * weights[0] + 20 * weights[1] + weights[2]).item() == pytest.approx(101), "1 in the mean over pixels"
    assert torch.equal(class_weights([80, 20], 0), torch.ones(2))
    balanced = class_weights([80, 20], 1)
    assert (80 * balanced[0]).item() == pytest.approx((20 * balanced[1]).item())


def test_a_cell_counts_by_the_weight_of_its_class():
    labels = torch.tensor([[[1, 255, 0]]])
    found = hard_cross_entropy(LOGITS, labels, torch.tensor([3.0, 0.5])).item()
    assert found == pytest.approx((0.5 * math.log(4 / 3) + 3 * math.log(2)) / 2)


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
