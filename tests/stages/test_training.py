import numpy as np

from wsseg_ray.stages.training import WINDOW, epoch_order


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
