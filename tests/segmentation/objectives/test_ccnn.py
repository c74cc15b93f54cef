import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from wsseg_ray.segmentation.objectives import ccnn
from wsseg_ray.segmentation.objectives.ccnn import ccnn_loss, constrained_distribution


def drawn(seed: int, photos: int, classes: int, spread: float, gap: float) -> torch.Tensor:
    """Logits (photos, classes, 8, 8): noise of `spread` in every cell, and each class off by some `gap` everywhere."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(photos, classes, 8, 8, generator=generator)
    return spread * noise + gap * torch.randn(photos, classes, 1, 1, generator=generator)


def everywhere(*logits: float) -> torch.Tensor:
    """One photo (1, C, 2, 3) whose cells are all alike."""
    return torch.tensor(logits)[None, :, None, None].expand(1, -1, 2, 3)


def ascent(logits: torch.Tensor, present: torch.Tensor, steps: int = 20000, rate: float = 1.0) -> torch.Tensor:
    """The dual climbed by its gradient, bound minus share, which takes a step for each few logits of a gap."""
    scores = logits.double().flatten(2).masked_fill(~present[:, :, None], -torch.inf)
    least = torch.full(present.shape, 0.05, dtype=torch.double)
    least[:, 0] = 0.3
    above, below = torch.zeros_like(least), torch.zeros_like(least[:, 0])
    for _ in range(steps):
        weight = above.clone()
        weight[:, 0] -= below
        share = (scores + weight[:, :, None]).softmax(dim=1).mean(dim=2)
        above = (above + rate * (least - share)).clamp(min=0)
        below = (below + rate * (share[:, 0] - 0.7)).clamp(min=0)
    return (scores + weight[:, :, None]).softmax(dim=1).view_as(logits).float()


def test_constraints_that_hold_leave_the_softmax():
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]]])[None]
    found = constrained_distribution(logits, torch.tensor([[True, True]]))
    torch.testing.assert_close(found, logits.softmax(dim=1))


def test_absent_classes_get_nothing():
    found = constrained_distribution(torch.randn(2, 4, 3, 3), torch.tensor([[True, True, False, False]] * 2))
    assert not found[:, 2:].any()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 3, 3))


@settings(max_examples=15)
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
    np.testing.assert_allclose(found[0, :, 0].numpy(), expected, atol=0.01)


@pytest.mark.parametrize("gap", [5, 20, 200, 1000])
@pytest.mark.parametrize(
    "logits, expected",
    [
        ((0, -1), (0.7, 0.3)),  # the background's upper bound
        ((-1, 0), (0.3, 0.7)),  # its lower bound
        ((0, 0, -1), (0.475, 0.475, 0.05)),  # what a class needs is taken from the others alike
        ((0, -1, -1), (0.7, 0.15, 0.15)),
        ((0, -1, -2), (0.7, 0.25, 0.05)),
        ((-1, 0, -1), (0.3, 0.65, 0.05)),
    ],
)
def test_by_hand(logits, expected, gap):
    found = constrained_distribution(gap * everywhere(*map(float, logits)), torch.ones(1, len(logits), dtype=bool))
    torch.testing.assert_close(found, everywhere(*expected).contiguous(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("gap", [0, 6, 20, 200, 1000])
@pytest.mark.parametrize("off", [0, 1, 2])
def test_the_bounds_hold(gap, off):
    logits = drawn(1, 4, 4, 1, 0)
    logits[:2, off] += gap
    logits[2:, off] -= gap
    share = constrained_distribution(logits, torch.tensor([[True, True, True, False]] * 4)).mean(dim=(2, 3))
    assert (share[:, 0] > 0.299).all() and (share[:, 0] < 0.701).all() and (share[:, 1:3] > 0.049).all()


@pytest.mark.parametrize("gap", [0, 3, 10])
def test_equals_the_ascent_on_the_dual(gap):
    logits, present = drawn(2, 6, 5, 2, gap), torch.ones(6, 5, dtype=torch.bool)
    present[::2, 2] = present[1, 3] = False
    torch.testing.assert_close(constrained_distribution(logits, present), ascent(logits, present), atol=0.005, rtol=0)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(2, 9),
    spread=st.sampled_from([0.0, 1.0, 20.0, 300.0]),
    gap=st.sampled_from([0.0, 5.0, 50.0, 1000.0]),
)
@example(seed=147163669, classes=4, spread=300.0, gap=1000.0)  # it needs hundreds of sweeps
def test_a_weight_is_there_only_where_its_bound_is_tight(seed, classes, spread, gap):
    """The Karush-Kuhn-Tucker conditions, which hold at the optimum alone, because the dual is concave."""
    scores = drawn(seed, 3, classes, spread, gap).flatten(2)
    least, most = torch.full((3, classes), 0.05), torch.ones(3, classes)
    least[:, 0], most[:, 0] = 0.3, 0.7
    weight = ccnn._weights(scores, torch.ones(3, classes, dtype=torch.bool), least, most)
    share = (scores.double() + weight.double()[:, :, None]).softmax(dim=1).mean(dim=2)
    assert (share > least - 0.002).all() and (share < most + 0.002).all()
    assert (share - least)[weight > 0].abs().le(0.002).all() and (share - most)[weight < 0].abs().le(0.002).all()


def test_a_photo_does_not_depend_on_the_photos_beside_it():
    logits, present = drawn(3, 4, 6, 2, 20), torch.ones(4, 6, dtype=torch.bool)
    present[0, 1:5] = present[1, 3:] = False
    alone = torch.cat([constrained_distribution(logits[[i]], present[[i]]) for i in range(4)])
    torch.testing.assert_close(constrained_distribution(logits, present), alone, atol=0.005, rtol=0)


@pytest.mark.parametrize("gap", [0, 20, 1000])
def test_bounds_that_cannot_all_be_met_are_divided_by_their_sum(gap):
    """20 classes at 0.05 and a background at 0.3 make 1.3."""
    found = constrained_distribution(drawn(4, 2, 21, 3, gap), torch.ones(2, 21, dtype=torch.bool))
    share = found.mean(dim=(2, 3))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 8, 8))
    torch.testing.assert_close(share[:, 0], torch.full((2,), 0.3 / 1.3), atol=0.005, rtol=0)
    torch.testing.assert_close(share[:, 1:], torch.full((2, 20), 0.05 / 1.3), atol=0.005, rtol=0)


def test_a_photo_of_background_alone_is_background():
    logits = drawn(5, 2, 3, 1, 0)
    found = constrained_distribution(logits, torch.tensor([[True, False, False], [True, True, False]]))
    assert (found[0, 0] == 1).all() and not found[0, 1:].any()
    torch.testing.assert_close(found[[1]], constrained_distribution(logits[[1]], torch.tensor([[True, True, False]])))


def test_the_loss_pulls_towards_the_constraints():
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 0] = 5
    logits.requires_grad_()
    loss = ccnn_loss(logits, torch.tensor([[True, True, False]]))
    loss.backward()
    assert loss.item() > 0 and (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1] < 0).all()
    assert logits.grad[:, 2].abs().max().item() == pytest.approx(0, abs=0.01)
