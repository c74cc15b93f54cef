import re

import pytest
import torch
from torch.nn import functional

from benchmarks.speed_of_light import Counted, Gpu, against_floor, duty, floor_of, thread_of
from wsseg_ray import pipeline
from wsseg_ray.engine.stage import open_run
from wsseg_ray.stages import score


def test_each_stage_of_a_run_has_a_floor_that_its_table_needs(tiny_local):
    job = open_run(tiny_local[1])
    stages = [stage for stage in pipeline.stages_of(job.recipe) if stage.writes in job.run.results]
    assert {"images", "proposals", "score", "refine", "supervise", "train_segmenter", "predict"} <= {
        stage.name for stage in stages
    }
    for stage in stages:
        line = against_floor(job, stage, 1, cores=2)
        form = r"floor +[\d.]+ \(on one core: .*\): \d+%" if stage.work else r"computing in \d+% of the time"
        assert re.fullmatch(rf"took +[\d.]+; {form}", line), line
    before = {table: job.run.shards(table) for table in ("images", "scores")}
    assert all(value > 0 for value in floor_of(job, score.STAGE, before["scores"][:1]))
    assert {table: job.run.shards(table) for table in before} == before  # nothing was written into the run


def test_an_actors_thread_passes_on_what_the_table_has(tiny_local):
    job = open_run(tiny_local[1])
    found = thread_of(job, score.STAGE, job.run.shards("scores", "train")[:1], launch=0.0)
    assert found["photos"] > 0 and found["ms"] > 0 and found["operations"] >= 1 and found["to"] > found["from"] > 0
    assert found["A10G"] > found["H100"] > 0


def test_tasks_beside_an_actor_are_timed_without_it(tiny_local):
    job = open_run(tiny_local[1])
    (shard,) = job.run.shards("scores", "train")[:1]
    whole, beside = (floor_of(job, score.STAGE, [shard], beside_actor=beside).steps for beside in (False, True))
    assert 0 < beside < whole


def test_operations_take_what_they_multiply_or_what_they_move(monkeypatch):
    """A product of 100 x 100 matrices is 2e6 operations and 60,000 bytes; a sum of rows reads each row again."""
    monkeypatch.setattr("benchmarks.speed_of_light.GPUS", {"slow": Gpu(1e6, 1e9), "narrow": Gpu(1e12, 1e3)})
    square = torch.zeros(100, 100)
    with Counted() as counted:
        square @ square.T  # another view costs nothing
    assert counted.seconds == pytest.approx({"slow": 2e6 / 0.4e6, "narrow": 60.0})
    with Counted() as counted:
        functional.embedding_bag(torch.tensor([1, 1, 2, 3]), square, torch.tensor([0, 2]), mode="sum")
    assert counted.seconds["narrow"] == pytest.approx(4 * 4 * 100 / 1e3)


def test_how_busy_a_gpu_would_be():
    """A network of 1 ms, a thread of 3 ms: four actors fill a GPU, and tasks of 20 ms per photo then need 20 cores."""
    found = {"ms": 3.0, "A10G": 1.0}
    assert duty("A10G", found, 20.0) == "A10G: network 1.00 ms, busy 25%; with 4 actors 100% and 20.0 cores for tasks"
    assert "busy 98%; with 1 actors 98%" in duty("A10G", {"ms": 1.0, "A10G": 40.0}, 20.0)
