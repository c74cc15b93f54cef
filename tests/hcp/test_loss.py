import math

import pytest
import torch

from wsseg_ray.hcp import LOSSES
from wsseg_ray.hcp.loss import (
    binary_cross_entropy_loss,
    cross_entropy_loss,
    hypothesis_max,
    label_targets,
    region_loss,
    squared_loss,
)

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


def test_binary_cross_entropy_loss():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, -math.log(3.0)]])  # sigmoid (1/2, 3/4) and (1/2, 1/4)
    expected = (math.log(2) + math.log(4 / 3) + math.log(2) + math.log(4)) / 2
    assert binary_cross_entropy_loss(logits, TARGETS).item() == pytest.approx(expected)


def test_a_photo_without_labels_teaches_what_is_absent():
    loss = binary_cross_entropy_loss(torch.tensor([[0.0, 0.0]]), torch.zeros(1, 2))
    assert loss.item() == pytest.approx(2 * math.log(2))


def test_region_loss_leaves_out_what_is_not_known():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, -math.log(3.0)]], requires_grad=True)
    loss = region_loss(logits, torch.tensor([[1, -1], [0, 0]], dtype=torch.int8))
    assert loss.item() == pytest.approx((math.log(2) + math.log(2) + math.log(4 / 3)) / 2)
    loss.backward()
    assert logits.grad[0, 1] == 0


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_scores_of_a_softmax(loss):
    assert LOSSES.get(loss).scores(LOG).flatten().tolist() == pytest.approx([0.25, 0.75, 0.5, 0.5])
    assert not LOSSES.get(loss).apart


def test_scores_of_a_sigmoid():
    loss = LOSSES.get("binary_cross_entropy")
    assert loss.scores(LOG).flatten().tolist() == pytest.approx([0.5, 0.75, 0.5, 0.5])
    assert loss.apart


@pytest.mark.parametrize("loss", LOSSES.names)
def test_scores_are_float32_whatever_the_logits_are(loss):
    assert LOSSES.get(loss).scores(LOG.bfloat16()).dtype == torch.float32


def test_each_name_is_its_objective():
    compared = [LOSSES.get(name).compare for name in LOSSES.names]
    assert compared == [squared_loss, cross_entropy_loss, binary_cross_entropy_loss]


@pytest.mark.parametrize("loss", [squared_loss, cross_entropy_loss, binary_cross_entropy_loss])
def test_gradients(loss):
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits)
