import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsseg_ray.segmentation.objectives.em_adapt import adaptive_labels, em_adapt_loss


def test_the_background_takes_the_cells_that_want_it_most():
    logits = torch.tensor([[[0.0, 1, 2, 3, 4]], [[9.0, 9, 9, 9, 9]]])[None]
    present = torch.tensor([[True, True]])
    assert adaptive_labels(logits, present).flatten().tolist() == [1, 1, 1, 0, 0]  # 40 % of five cells


def test_shares_that_are_there_change_nothing():
    logits = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    present = torch.ones(2, 3, dtype=torch.bool)
    assert (adaptive_labels(logits, present, 0.01, 0.01) == logits.argmax(dim=1)).all()


def test_the_loss_is_cross_entropy_with_the_labels():
    logits = torch.tensor([[[0.0, math.log(3)]], [[0.0, 0.0]]])[None].requires_grad_()
    loss = em_adapt_loss(logits, torch.tensor([[True, True]]))
    loss.backward()
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert torch.isfinite(logits.grad).all()


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.lists(st.booleans(), min_size=3, max_size=3))
def test_every_share_is_met_and_nothing_absent_appears(seed, side, others):
    """With two classes of the photo or fewer the shares fit (0.4 + 0.2 + 0.2 and rounding), so all are met."""
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(1, 4, side, side, generator=generator)
    present = torch.tensor([[True, *others]])
    found = adaptive_labels(logits, present)
    share = torch.bincount(found.flatten(), minlength=4) / side**2
    assert not share[~present[0]].any()
    if 1 < present.sum() <= 3 and side >= 6:
        assert share[0] >= 0.4
        assert (share[1:][present[0, 1:]] >= 0.2 - 2 / side**2).all()
