"""What every runner does, and a few stages to do it with. A test class of each runner inherits `RunnerContract`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runs import by_name, empty_job
from wsseg_ray.engine.shards import counts
from wsseg_ray.engine.stage import Job, Stage, Step, Work, Worker
from wsseg_ray.errors import RecipeError
from wsseg_ray.storage import StorageError
from wsseg_ray.tables import IMAGES, ImageRow, Row, array

SHARDS = {"train-00000": ["a", "b"], "train-00001": ["c", "bad", "odd"], "val-00000": ["d"]}
TASKS = Stage("images", (), "images", lambda job, runner: 0, table=IMAGES)
ACTORS = replace(TASKS, name="score", workers=lambda recipe: "actors")
TRAINERS = replace(TASKS, name="train_hcp", writes="hcp", table=None, workers=lambda recipe: "trainers")


@dataclass
class SquareRow(ImageRow):
    """A row with an array in two dimensions."""

    square: np.ndarray = array("int32", ("height", "width"), "(H, W) whatever")  # noqa: RUF009


def read(job: Job, shard: str) -> list[ImageRow]:
    return [ImageRow(name, split=shard, height=2, width=3) for name in SHARDS[shard]]


def compute(job: Job, row: ImageRow, failing: tuple[str, ...] = ("bad", "odd")) -> ImageRow:
    if row.image_id in failing:
        raise ValueError("not today") if row.image_id != "odd" else KeyError("surprise")
    return ImageRow(uri=row.split)


def square(job: Job, row: ImageRow) -> SquareRow:
    return SquareRow(**{**vars(row), "square": np.full((row.height, row.width), len(row.image_id))})


class Actor:
    """Turns the square."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, row: SquareRow) -> SquareRow:
        compute(self.job, row)
        return SquareRow(**{**vars(row), "square": row.square.T, "height": row.width, "width": row.height})


def finish(job: Job, row: SquareRow) -> ImageRow:
    assert row.square.shape == (row.height, row.width) == (3, 2) and row.square.dtype == np.int32
    return ImageRow(uri=f"{row.split}!", height=int(row.square[0, 0]))


def broken_storage(job: Job, shard: str) -> list[Row]:
    raise StorageError("s3://bucket: storage failed for 300 s")


def no_photos(job: Job, shard: str) -> list[Row]:
    return []


IN_TASKS = Work(IMAGES, read, (Step(compute, ImageRow),))
THREE_STEPS = Work(IMAGES, read, (Step(square, SquareRow), Step(Actor, SquareRow, actor=True), Step(finish, ImageRow)))
TWO_STEPS = replace(THREE_STEPS, steps=THREE_STEPS.steps[:2])
TODO = list(SHARDS)


def shard_sizes(job: Job, shard: str) -> dict[str, np.ndarray]:
    return {"rows": np.array(len(SHARDS[shard]))}


def note_down(job: Job) -> None:
    import torch

    job.run.write_json(torch.get_num_threads(), "threads.json")


def plan(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"number": number, "names": tuple("abc"[: number % 3])}


def squares(columns: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for number, names in zip(columns["number"], columns["names"], strict=True):
        yield {"square": np.array([[number**2, len(names)]])}


def train(worker: Worker) -> None:
    """Streams fifty steps, and notes down what came."""
    assert (worker.rank, worker.world, worker.photos) == (0, 1, ["some", "photos"])
    found = []
    for step in worker.stream(plan(50), squares):
        assert step["square"].device.type == worker.device.type
        found.append(step["square"].tolist())
        worker.tell(len(found), f"step {len(found)}", 0.25 * len(found), 0.5)
    worker.report({"loss": 1.0})
    worker.job.run.write_json(found, "hcp", "found.json")


class RunnerContract:
    """Tests of a runner, which the fixture `runner` of a class gives."""

    @pytest.fixture
    def job(self, tmp_path: Path) -> Job:
        return empty_job(tmp_path)

    def test_every_row_once_and_an_error_is_a_row(self, runner, job):
        assert runner.map_shards(job, TASKS, IN_TASKS, TODO) == 6
        found = by_name(job.run, IMAGES)
        assert found.keys() == {"a", "b", "c", "bad", "odd", "d"} and job.run.shards("images") == sorted(SHARDS)
        assert (found["a"].uri, found["a"].error) == ("train-00000", "") and found["d"].uri == "val-00000"
        assert (found["bad"].uri, found["bad"].error) == ("", "not today")
        assert "KeyError at runner_contract.py" in found["odd"].error
        assert job.run.names("tries", "images") == []

    def test_what_is_done_is_not_done_again(self, runner, job):
        assert runner.map_shards(job, TASKS, IN_TASKS, ["train-00000"]) == 2
        assert runner.map_shards(job, TASKS, IN_TASKS, TODO) == 4
        assert runner.map_shards(job, TASKS, IN_TASKS, TODO) == 0
        assert len(list(job.run.rows(IMAGES))) == 6

    def test_counts_are_kept_and_found_again(self, runner, job):
        """Photos and failed photos of each shard: as tasks told them, or as the files say."""
        runner.map_shards(job, TASKS, IN_TASKS, TODO[:1])
        runner.map_shards(job, TASKS, IN_TASKS, TODO)
        wanted = {"train-00000": (2, 0), "train-00001": (3, 2), "val-00000": (1, 0)}
        told = {shard: tuple(counts) for shard, counts in job.run.read_json("images", "counts.json").items()}
        assert told == counts(job, IMAGES) == wanted
        job.run.delete("images", "counts.json")
        assert counts(job, IMAGES) == wanted

    def test_an_actor_between_tasks(self, runner, job):
        """Arrays keep their shape on the way, and an error passes by what comes after it."""
        assert runner.map_shards(job, ACTORS, THREE_STEPS, TODO) == 6
        found = by_name(job.run, IMAGES)
        assert (found["c"].uri, found["c"].height) == ("train-00001!", 1)
        assert found["bad"].error == "not today" and found["odd"].error.startswith("unexpected KeyError")

    def test_an_actor_at_the_end(self, runner, job):
        assert runner.map_shards(job, ACTORS, TWO_STEPS, TODO) == 6
        assert [row.height for row in job.run.rows(IMAGES) if row.is_good] == [3] * 4

    def test_a_shard_without_photos_is_done_too(self, runner, job):
        assert runner.map_shards(job, TASKS, replace(IN_TASKS, read=no_photos), TODO) == 0
        assert job.run.shards("images") == sorted(SHARDS) and list(job.run.rows(IMAGES)) == []

    def test_how_far_a_stage_is_can_be_read_from_the_run(self, runner, job):
        runner.map_shards(job, ACTORS, THREE_STEPS, TODO)
        status = job.run.read_json("status.json")
        assert (status["stage"], status["state"], status["done"], status["total"]) == ("score", "done", 3, 3)
        assert status["rows"] == 6 and status["failed"] == 2 and 0 <= status["busy_share"] <= 1
        assert status["task"] > 0 and status["busy"] > 0 and status["waited"] >= 0
        assert status["note"] == "6 photos, 2 failed" and status["cluster"]["CPU"] >= 1
        job.run.delete("images")
        runner.map_shards(job, TASKS, IN_TASKS, TODO[:1])
        status = job.run.read_json("status.json")
        assert (status["stage"], status["rows"], status["busy_share"]) == ("images", 2, None)

    def test_a_stage_where_everything_fails_stops_the_run(self, runner, job):
        failing = replace(IN_TASKS, steps=(Step(partial(compute, failing=("a", "b")), ImageRow),))
        with pytest.raises(RuntimeError, match=r"^images: all 2 photos failed, one with: not today$"):
            runner.map_shards(job, TASKS, failing, ["train-00000"])
        runner.map_shards(job, TASKS, failing, ["train-00001"])
        job.run.delete("images", "train-00000.parquet")
        assert runner.map_shards(job, TASKS, failing, ["train-00000"]) == 2, "others were good before"

    def test_storage_that_fails_is_no_photos_fault(self, runner, job):
        """The stage stops with a word; no photo is written down as failed."""
        with pytest.raises(RuntimeError, match=r"s3://bucket: storage failed for 300 s$"):
            runner.map_shards(job, TASKS, replace(IN_TASKS, read=broken_storage), TODO)
        assert job.run.shards("images") == [] and job.run.read_json("status.json")["state"] == "stopped"

    def test_parts_that_are_added_up(self, runner, job):
        found = runner.map_reduce(job, "sizes", shard_sizes, list(SHARDS))
        assert sorted(int(part["rows"]) for part in found) == [1, 2, 3]

    def test_a_function_that_is_called_once(self, runner, job):
        runner.call(job, ACTORS, note_down)
        assert job.run.read_json("threads.json") == runner.needs(job, ACTORS).threads

    def test_a_training(self, runner, job):
        runner.fit(job, TRAINERS, train, 50, ["some", "photos"])
        assert job.run.read_json("hcp", "found.json") == [[n**2, n % 3] for n in range(50)]
        status = job.run.read_json("status.json")
        assert (status["stage"], status["unit"], status["done"], status["total"]) == ("train_hcp", "photos", 50, 50)
        assert status["rows"] == 50

    def test_what_a_recipe_cannot_ask_for_is_refused(self, runner):
        job = empty_job(Path("/nowhere"), "runtime.stages.images.gpus=1")
        with pytest.raises(RecipeError, match=r"runtime\.stages\.images\.gpus: a stage that runs on tasks has none"):
            runner.check(job.recipe, [TASKS])
