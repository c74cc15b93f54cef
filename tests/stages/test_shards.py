"""Mapping over shards with real Ray: every row once, an error costs its own row alone, what is done stays done."""

import ctypes
import functools
import threading
from dataclasses import replace

import pytest

from wsseg_ray import recipe
from wsseg_ray.datasets import Listing
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.shards import map_shards
from wsseg_ray.tables import RunDirectory, StorageError

SHARDS = {"train-00000": ["a", "b"], "train-00001": ["c", "bad", "odd"], "val-00000": ["d"]}


@pytest.fixture
def job(cluster, tmp_path) -> Job:
    return Job(RunDirectory.at(str(tmp_path)), recipe.load("demo"), Listing(["x"], [1], []))


def load(job, shard, names):
    return [{"image_id": name, "shard": shard} for name in names]


def same(job, row):
    return row


def compute(job, row, failing=("bad", "odd")):
    if row["image_id"] in failing:
        raise ValueError("not today") if row["image_id"] != "odd" else KeyError("surprise")
    return {"uri": row["shard"]}


class Actor:
    def __init__(self, job):
        self.job = job

    def __call__(self, row):
        return {**row, **compute(self.job, row)}


def finish(job, row):
    return {"uri": row["uri"] + "!"}


def rows(job):
    return {row["image_id"]: (row["uri"], row["error"]) for row in job.run.rows("images")}


def test_every_row_once_and_an_error_is_a_row(job):
    assert map_shards(job, "images", "images", SHARDS, load, compute) == 6
    found = rows(job)
    assert found.keys() == {"a", "b", "c", "bad", "odd", "d"}
    assert found["a"] == ("train-00000", "") and found["d"] == ("val-00000", "")
    assert found["bad"] == ("", "not today")
    assert "KeyError" in found["odd"][1] and "test_shards.py" in found["odd"][1]


def test_what_is_done_is_not_done_again(job):
    map_shards(job, "images", "images", {"train-00000": ["a", "b"]}, load, compute)
    assert map_shards(job, "images", "images", SHARDS, load, compute) == 4
    assert map_shards(job, "images", "images", SHARDS, load, compute) == 0
    assert len(list(job.run.rows("images"))) == 6


def test_actors_between_tasks_that_read_and_tasks_that_write(job):
    assert map_shards(job, "score", "images", SHARDS, load, same, Actor, finish) == 6
    assert rows(job)["c"] == ("train-00001!", "") and rows(job)["bad"] == ("", "not today")


def killing(job, row, victim="bad"):
    if row["image_id"] == victim:
        ctypes.string_at(0)  # as a decoder does: reads what is not its own
    return {"uri": row["shard"]}


class SameActor(Actor):
    def __call__(self, row):
        return row


class KillingActor(Actor):
    def __call__(self, row):
        return killing(self.job, row)


@pytest.mark.parametrize("step", ["task", "actor", "finish"])
def test_a_photo_that_kills_every_process_costs_itself_alone(job, step):
    """A decoder's crash, or a photo that fills the memory: Ray starts the task again, and it dies again."""
    if step == "task":
        done = map_shards(job, "images", "images", SHARDS, load, killing)
    elif step == "actor":
        done = map_shards(job, "score", "images", SHARDS, load, same, KillingActor)
    else:
        done = map_shards(job, "score", "images", SHARDS, load, same, SameActor, killing)
    found = rows(job)
    assert done == 6 and found.keys() == {"a", "b", "c", "bad", "odd", "d"}
    assert "died each time" in found.pop("bad")[1]
    assert all(uri and not error for uri, error in found.values())
    assert job.run.names("tries", "images") == job.run.names("tries", "score") == []


def broken_storage(job, shard, names):
    raise StorageError("s3://bucket: storage failed for 300 s")


def test_storage_that_fails_is_no_photos_fault(job):
    """The stage stops with a word; no photo is written down as failed."""
    with pytest.raises(RuntimeError, match=r"^images: s3://bucket: storage failed for 300 s$"):
        map_shards(job, "images", "images", SHARDS, broken_storage, compute)
    assert job.run.shards("images") == []


def test_what_stands_still_stops_with_a_word(job):
    runtime = job.recipe.runtime.model_copy(update={"no_progress_minutes": 0.05})
    job = replace(job, recipe=job.recipe.model_copy(update={"runtime": runtime}))
    with pytest.raises(RuntimeError, match=r"images: nothing was done for 0\.05 minutes"):
        map_shards(job, "images", "images", SHARDS, stuck, compute)
    job.run.write_bytes(b"", "release")


def stuck(job, shard, names):
    while not job.run.exists("release"):
        threading.Event().wait(0.1)
    return []


def test_how_far_a_stage_is_can_be_read_from_the_run(job):
    map_shards(job, "score", "images", SHARDS, load, same, Actor, finish)
    status = job.run.read_json("status.json")
    assert (status["stage"], status["state"], status["done"], status["total"]) == ("score", "done", 3, 3)
    assert status["rows"] == 6 and status["failed"] == 2 and 0 <= status["busy_share"] <= 1
    assert status["task"] > 0 and status["waited"] >= 0


def test_a_stage_where_everything_fails_stops_the_run(job):
    failing = functools.partial(compute, failing=("a", "b"))
    with pytest.raises(RuntimeError, match="all 2 photos failed"):
        map_shards(job, "images", "images", {"train-00000": ["a", "b"]}, load, failing)
