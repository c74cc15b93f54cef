import math
import threading

import numpy as np
import pytest
import torch

from wsseg_ray import recipe
from wsseg_ray.datasets import Listing
from wsseg_ray.stages import train_segmenter, training
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.training import WINDOW, Member, epoch_order, fit, step
from wsseg_ray.tables import RunDirectory


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


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_no_weight(factor):
    weight, optimizer = one_weight(3.0)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        step((factor * weight).sum(), 1.0, optimizer)
    assert weight.tolist() == [3, 0]


def test_an_index_reads_each_table_once(tmp_path, monkeypatch):
    """Before, each network read both tables in the driver twice and once in each worker."""
    run = RunDirectory.at(str(tmp_path))
    images = [
        {"image_id": "a", "labels": [0], "mask_uri": "a.png"},
        {"image_id": "b", "labels": [0, 2], "mask_uri": ""},
        {"image_id": "c", "labels": [1], "mask_uri": ""},
        {"image_id": "broken", "error": "not a photo"},
    ]
    run.write_shard("images", "train-00000", images)
    run.write_shard(
        "supervision", "train-00000", [{"image_id": "b"}, {"image_id": "a"}, {"image_id": "c", "error": "x"}]
    )
    run.write_shard("images", "val-00000", [{"image_id": "v", "labels": [1]}])
    run.write_shard("supervision", "val-00000", [{"image_id": "v"}])
    reads, read = [], RunDirectory.read_shard
    monkeypatch.setattr(RunDirectory, "read_shard", lambda self, *place: reads.append(place[:2]) or read(self, *place))
    photos = training.index(run, "supervision")
    assert photos == [("train-00000", [Member("a", 1, True), Member("b", 2, False)])]
    assert sorted(reads) == [("images", "train-00000"), ("supervision", "train-00000")]
    names = {"AN_B": ["a", "b"], "SN_B_unrefined": ["a"], "FULL": ["a"], "CCNN": ["a", "b"]}
    for name, expected in names.items():
        assert train_segmenter.members(photos, name) == [("train-00000", expected)], name
    assert training.chosen(photos, lambda member: member.labels > 2) == []


def stuck(config):
    while True:
        threading.Event().wait(0.1)


def test_a_training_that_stands_still_stops_with_a_word(cluster, tmp_path):
    settings = ["runtime.no_progress_minutes=0.1"]
    job = Job(RunDirectory.at(str(tmp_path)), recipe.load("demo", settings), Listing(["x"], [1], []))
    with pytest.raises(RuntimeError, match=r"train_hcp: nothing was done for 0\.1 minutes .* after 0 of 100 photos"):
        fit(job, "train_hcp", "hcp", stuck, 100)
    assert job.run.read_json("status.json")["state"] == "stopped"


def failing(config):
    raise FloatingPointError("the loss is nan")


def test_a_training_that_fails_says_why_in_a_line(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "MAX_FAILURES", 0)
    job = Job(RunDirectory.at(str(tmp_path)), recipe.load("demo"), Listing(["x"], [1], []))
    with pytest.raises(RuntimeError, match=r"^train_hcp: FloatingPointError: the loss is nan$"):
        fit(job, "train_hcp", "hcp", failing, 100)
