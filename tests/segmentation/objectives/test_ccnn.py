import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from wsseg_ray.segmentation.objectives.ccnn import ccnn_loss, constrained_distribution


def test_constraints_that_hold_leave_the_softmax():
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]]])[None]
    found = constrained_distribution(logits, torch.tensor([[True, True]]))
    torch.testing.assert_close(found, logits.softmax(dim=1))


def test_absent_classes_get_nothing():
    found = constrained_distribution(torch.randn(2, 4, 3, 3), torch.tensor([[True, True, False, False]] * 2))
    assert not found[:, 2:].any()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 3, 3))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_equals_the_textbook_optimum(seed):
    """The dual, maximised by SciPy's L-BFGS-B over weights that are not negative."""
    rng = np.random.default_rng(seed)
    f = 2 * rng.normal(size=(3, 12))
    f[0] += rng.uniform(-3, 3)
    bounds, sign, row = np.array([0.3, 0.05, 0.05, -0.7]), np.array([1, 1, 1, -1]), np.array([0, 1, 2, 0])

    def dual(weights):
        shift = np.bincount(row, weights * sign, 3)
        g = f + shift[:, None]
        top = g.max(axis=0)
        z = np.exp(g - top)
        share = (z / z.sum(axis=0)).mean(axis=1)
        value = weights @ bounds - (top + np.log(z.sum(axis=0))).mean()
        return -value, -(bounds - sign * share[row])

    best = minimize(dual, np.zeros(4), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 4, options={"ftol": 1e-14})
    g = f + np.bincount(row, best.x * sign, 3)[:, None]
    expected = np.exp(g - g.max(axis=0))
    expected /= expected.sum(axis=0)
    found = constrained_distribution(torch.tensor(f, dtype=torch.float32)[None, :, None], torch.ones(1, 3, dtype=bool))
    np.testing.assert_allclose(found[0, :, 0].numpy(), expected, atol=0.02)


def test_the_bounds_hold():
    logits = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    logits[:2, 0] += 6  # the background everywhere
    logits[2:, 0] -= 6
    share = constrained_distribution(logits, torch.ones(4, 3, dtype=torch.bool)).mean(dim=(2, 3))
    assert (share[:, 0] > 0.29).all() and (share[:, 0] < 0.71).all() and (share[:, 1:] > 0.04).all()


def test_the_loss_pulls_towards_the_constraints():
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 0] = 5
    logits.requires_grad_()
    loss = ccnn_loss(logits, torch.tensor([[True, True, False]]))
    loss.backward()
    assert loss.item() > 0 and (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1] < 0).all()
    assert logits.grad[:, 2].abs().max().item() == pytest.approx(0, abs=0.01)
