"""Mapping over shards with real Ray: every row once, an error costs its own row alone, what is done stays done."""

import functools

import pytest

from wsseg_ray import recipe
from wsseg_ray.datasets import Listing
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.shards import map_shards
from wsseg_ray.tables import RunDirectory

SHARDS = {"train-00000": ["a", "b"], "train-00001": ["c", "bad", "odd"], "val-00000": ["d"]}


@pytest.fixture
def job(cluster, tmp_path) -> Job:
    return Job(RunDirectory.at(str(tmp_path)), recipe.load("demo"), Listing(["x"], [1], []))


def load(job, shard, names):
    return [{"image_id": name, "shard": shard} for name in names]


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
    assert map_shards(job, "images", "images", SHARDS, load, actor=Actor, finish=finish) == 6
    assert rows(job)["c"] == ("train-00001!", "") and rows(job)["bad"] == ("", "not today")


def test_a_stage_where_everything_fails_stops_the_run(job):
    failing = functools.partial(compute, failing=("a", "b"))
    with pytest.raises(RuntimeError, match="all 2 photos failed"):
        map_shards(job, "images", "images", {"train-00000": ["a", "b"]}, load, failing)
