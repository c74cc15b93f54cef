import math

import numpy as np
import pytest
import torch

from wsseg_ray.stages.training import WINDOW, epoch_order, step


def shards(count: int, size: int) -> list[tuple[str, list[str]]]:
    return [(f"train-{n:05d}", [f"photo{n}_{i}" for i in range(size)]) for n in range(count)]


def test_an_epoch_shows_every_photo_once():
    members = shards(40, 3)
    order = epoch_order(members, np.random.default_rng(0))
    assert sorted(order) == sorted((name, photo) for name, photos in members for photo in photos)


def test_a_window_of_shards_is_all_that_is_mixed():
    order = epoch_order(shards(3 * WINDOW, 5), np.random.default_rng(1))
    windows = [{shard for shard, _ in order[start : start + 5 * WINDOW]} for start in range(0, len(order), 5 * WINDOW)]
    assert [len(window) for window in windows] == [WINDOW] * 3
    assert order != sorted(order)


def test_the_order_follows_the_seed():
    members = shards(5, 4)
    first, again, other = (epoch_order(members, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == again != other


def one_weight(value: float) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.tensor([value, 0.0]))
    return weight, torch.optim.SGD([weight], lr=1.0)


def test_a_step_by_hand():
    weight, optimizer = one_weight(3.0)
    assert step((weight**2).sum() / 2, 7, optimizer) == 4.5  # alone it has all of the weight, whatever that is
    assert weight.tolist() == [0, 0]  # the gradient of half the square is the weight
    assert step(None, 0, optimizer) == 0 and weight.tolist() == [0, 0]


def test_a_long_gradient_is_scaled_down():
    weight, optimizer = one_weight(3.0)
    step((weight**2).sum(), 1.0, optimizer, max_norm=2.0)
    assert weight.tolist() == pytest.approx([1, 0], abs=1e-5)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_no_weight(factor):
    weight, optimizer = one_weight(3.0)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        step((factor * weight).sum(), 1.0, optimizer)
    assert weight.tolist() == [3, 0]
