"""The runner on Ray: the contract, and what only processes can do: die, stand still, be elsewhere."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.engine.runner_contract import (
    ACTORS,
    IN_TASKS,
    TASKS,
    THREE_STEPS,
    TODO,
    TRAINERS,
    Actor,
    RunnerContract,
    compute,
    square,
)
from tests.runs import by_name, copy, cut_off, empty_job, same_rows
from wsseg_ray import recipe
from wsseg_ray.engine import ray_runner, resources
from wsseg_ray.engine.ray_runner import RayRunner, _shards_of_a_task, cluster, root_cause
from wsseg_ray.engine.resources import GB, Node
from wsseg_ray.engine.stage import Step
from wsseg_ray.errors import RecipeError
from wsseg_ray.tables import IMAGES, SCORES, ImageRow

ROOT = Path(__file__).parents[2]


class TestRayRunner(RunnerContract):
    @pytest.fixture
    def runner(self, cluster) -> RayRunner:
        return RayRunner()


@pytest.fixture
def job(cluster, tmp_path):
    return empty_job(tmp_path)


# ---- photos


def killing(job, row, victim="bad"):
    if row.image_id == victim:
        ctypes.string_at(0)  # as a decoder does: reads what is not its own
    return ImageRow(uri=row.split)


def killing_square(job, row):
    killing(job, row)
    return square(job, row)


class PassingActor(Actor):
    def __call__(self, row):
        return row


class KillingActor(Actor):
    def __call__(self, row):
        killing(self.job, row)
        return row


def given(job, row):
    return ImageRow(uri=row.split)


@pytest.mark.parametrize(
    "place", ["task", "actor", *(pytest.param(place, marks=pytest.mark.long) for place in ("read", "finish"))]
)
def test_a_photo_that_kills_every_process_costs_itself_alone(job, place):
    """A decoder's crash, or a photo that fills the memory: Ray starts the task again, and it dies again."""
    first, middle, last = (Step(square, ImageRow), Step(PassingActor, ImageRow, actor=True), Step(given, ImageRow))
    steps = {
        "task": (Step(killing, ImageRow),),
        "read": (Step(killing_square, ImageRow), middle, last),
        "actor": (first, Step(KillingActor, ImageRow, actor=True), last),
        "finish": (first, middle, Step(killing, ImageRow)),
    }[place]
    stage = TASKS if place == "task" else ACTORS
    assert RayRunner().map_shards(job, stage, replace(IN_TASKS, steps=steps), TODO) == 6
    found = by_name(job.run, IMAGES)
    assert found.keys() == {"a", "b", "c", "bad", "odd", "d"}
    assert "died each time" in found.pop("bad").error
    assert all(row.uri and not row.error for row in found.values())
    assert job.run.names("tries", "images") == job.run.names("tries", "score") == []


def stuck(job, shard):
    while not job.run.exists("release"):
        threading.Event().wait(0.1)
    return []


def test_what_stands_still_stops_with_a_word(cluster, tmp_path):
    job = empty_job(tmp_path, "runtime.no_progress_minutes=0.05")
    with pytest.raises(RuntimeError, match=r"images: nothing was done for 0\.05 minutes"):
        RayRunner().map_shards(job, TASKS, replace(IN_TASKS, read=stuck), TODO)
    job.run.write_bytes(b"", "release")


PRETENDED_GPU = """
import ray, sys
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
from wsseg_ray import pipeline, recipe
pipeline.run(recipe.load("demo", sys.argv[2:]), sys.argv[1], "score")
"""


def test_actors_take_gpus(tiny, tiny_local, tmp_path):
    """Ray is told of a GPU that is not there: actors ask for it and compute on the CPU, so the rows are equal."""
    run = copy(tiny_local[1], tmp_path)
    cut_off(run, "score", "scores")
    subprocess.run([sys.executable, "-c", PRETENDED_GPU, run.root, *tiny], check=True, cwd=ROOT, timeout=500)
    assert len(list(run.rows(SCORES))) == 24 and same_rows(run, tiny_local[1], SCORES)


def test_a_process_sees_no_gpu_that_it_was_not_given(monkeypatch):
    given = {"GPU": []}
    monkeypatch.setattr(
        ray_runner.ray, "get_runtime_context", lambda: SimpleNamespace(get_accelerator_ids=lambda: given)
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    given["GPU"] = ["1"]
    ray_runner._hide_other_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1", "that is Ray's to set"
    given["GPU"] = []
    ray_runner._hide_other_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_several_shards_in_a_task_and_several_workers(cluster, tmp_path):
    settings = ["images.batch_size=64", "images.max_workers=2", "score={min_workers: 1, max_workers: 2}"]
    job = empty_job(tmp_path, *(f"runtime.stages.{setting}" for setting in settings))
    assert RayRunner().map_shards(job, TASKS, IN_TASKS, TODO) == 6
    expected = by_name(job.run, IMAGES)
    assert job.run.shards("images") == sorted(TODO) and expected["a"].uri == "train-00000"
    job.run.delete("images")
    steps = (Step(square, ImageRow), Step(PassingActor, ImageRow, actor=True), Step(compute, ImageRow))
    assert RayRunner().map_shards(job, ACTORS, replace(THREE_STEPS, steps=steps), TODO) == 6
    found = by_name(job.run, IMAGES)
    assert {name: row.uri for name, row in found.items()} == {name: row.uri for name, row in expected.items()}


def test_a_task_has_at_most_the_photos_that_the_recipe_says(tmp_path):
    job = empty_job(tmp_path, "runtime.stages.images.batch_size=1000")
    for photos, shards in ((100, 250), (5000, 31), (1_000_000, 8), (20_000_000, 1)):
        # Shards of 4, of 32, of 123 and of 1,024 photos
        job = replace(job, listing=replace(job.listing, photos=range(photos)))
        assert _shards_of_a_task(job, TASKS, IN_TASKS, 1000) == shards
    job = empty_job(tmp_path / "without")
    assert [_shards_of_a_task(job, TASKS, IN_TASKS, shards) for shards in (1000, 20_000, 62_500)] == [1, 1, 4]


def test_the_first_error_is_what_is_told():
    text = (
        "ray::RayTaskError(ValueError)\n  File x\nValueError: no\n\nThe above exception was the direct cause of ...\nOh"
    )
    assert root_cause(RuntimeError(text)) == "ValueError: no"
    assert root_cause(RuntimeError("wsseg_ray.storage.StorageError: s3://b: gone")) == "s3://b: gone"


# ---- trainings


def stands_still(worker):
    while True:
        threading.Event().wait(0.1)


def test_a_training_that_stands_still_stops_with_a_word(cluster, tmp_path):
    job = empty_job(tmp_path, "runtime.no_progress_minutes=0.1")
    with pytest.raises(RuntimeError, match=r"train_hcp: nothing was done for 0\.1 minutes .* after 0 of 100 photos"):
        RayRunner().fit(job, TRAINERS, stands_still, 100, None)
    assert job.run.read_json("status.json")["state"] == "stopped"


def failing(worker):
    raise FloatingPointError("the loss is nan")


def test_a_training_that_fails_says_why_in_a_line(job, monkeypatch):
    monkeypatch.setattr(ray_runner, "MAX_FAILURES", 0)
    with pytest.raises(RuntimeError, match=r"^train_hcp: FloatingPointError: the loss is nan$"):
        RayRunner().fit(job, TRAINERS, failing, 100, None)


def meets(worker):
    """Each of two workers says who it is, and both wait for each other."""
    worker.job.run.write_json([worker.world, worker.photos, worker.threads], "hcp", f"{worker.rank}.json")
    worker.tell(5, "half", 0.1, 0.2)
    worker.report({"epoch": 0})


def test_two_workers(cluster, tmp_path):
    job = empty_job(tmp_path, "runtime.num_workers=2")
    RayRunner().fit(job, TRAINERS, meets, 10, {"photos": 3})
    assert [job.run.read_json("hcp", f"{rank}.json") for rank in (0, 1)] == [[2, {"photos": 3}, 1]] * 2
    assert job.run.read_json("hcp", ray_runner.PROGRESS)["seen"] == 5


# ---- the cluster


def test_this_cluster_is_seen_as_it_is(cluster):
    found = ray_runner.cluster(recipe.load("demo"))
    assert [(node.cpus, node.gpus, node.count) for node in found] == [(2, 0, 1)]


GROWN = "runtime.cluster=[{cpus: 16, count: 8}, {cpus: 8, gpus: 1, count: 4, memory_gb: 3}]"


def test_what_a_cluster_may_grow_to_is_what_the_recipe_says(cluster, tmp_path):
    job = empty_job(tmp_path, GROWN)
    assert ray_runner.cluster(job.recipe) == [Node(16, 0, math.inf, 8), Node(8, 1, 3 * GB, 4)]
    wanted = RayRunner().needs(job, ACTORS)
    assert (wanted.cpus, wanted.gpus, wanted.most) == (1, 1, 4)


def test_or_what_ray_up_was_told(cluster, monkeypatch):
    monkeypatch.setattr(resources, "BOOTSTRAP", ROOT / "cluster.yaml")
    assert ray_runner.cluster(recipe.load("demo")) == [Node(16, 0, math.inf, 8), Node(8, 1, math.inf, 4)]


def test_a_cluster_without_a_cpu_says_how_to_say_what_comes(monkeypatch):
    monkeypatch.setattr(ray_runner.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 0.0, "memory": 1e9}}])
    with pytest.raises(RecipeError, match=r"no machine .* has a CPU .*runtime\.cluster="):
        cluster(recipe.load("demo"))


@pytest.mark.parametrize(("stage", "workers"), [(ACTORS, 1), (TRAINERS, 2)])
def test_the_needs_of_a_stage_are_asked_for_before_its_work(cluster, tmp_path, monkeypatch, stage, workers):
    asked = []
    monkeypatch.setattr(ray_runner, "request_resources", lambda bundles: asked.extend(bundles))
    job = empty_job(tmp_path, f"runtime.stages.{stage.name}={{min_workers: 1, max_workers: 2}}")
    RayRunner().ask_for(job, stage)
    assert asked == [{"CPU": 0.5}] * workers + [{"CPU": 1}]
