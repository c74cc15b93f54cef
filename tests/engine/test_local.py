"""The runner without Ray."""

import sys

import numpy as np
import pytest
import torch

from tests.engine.runner_contract import ACTORS, IN_TASKS, TASKS, TODO, TRAINERS, RunnerContract
from tests.runs import empty_job
from wsseg_ray.engine import local
from wsseg_ray.engine.local import LocalRunner, columns, photo_kernel
from wsseg_ray.engine.stage import Step
from wsseg_ray.tables import Row


@pytest.fixture(autouse=True)
def same_threads():
    """The runner sets torch's threads, which are the whole process's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TestLocalRunner(RunnerContract):
    @pytest.fixture
    def runner(self) -> LocalRunner:
        return LocalRunner()

    def test_what_a_training_tells(self, runner, job):
        """The seconds that it computed and waited are those that it told last."""

        def loop(worker):
            worker.tell(10, "ten", 1.0, 0.5)
            worker.tell(25, "more", 3.0, 0.75)

        runner.fit(job, TRAINERS, loop, 25, None)
        status = job.run.read_json("status.json")
        assert (status["busy"], status["waited"], status["rows"], status["note"]) == (3.0, 0.75, 25, "more")

    def test_an_error_of_a_training_is_not_wrapped(self, runner, job):
        def loop(worker):
            raise FloatingPointError("the loss is nan")

        with pytest.raises(FloatingPointError, match="the loss is nan"):
            runner.fit(job, TRAINERS, loop, 25, None)
        assert job.run.read_json("status.json")["state"] == "stopped"


def test_this_machine_is_all_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_cores", lambda: 6)
    runner, job = LocalRunner(), empty_job(tmp_path, "runtime.num_workers=3")
    wanted = runner.needs(job, ACTORS)
    assert (wanted.least, wanted.most, wanted.threads) == (1, 1, 6)
    runner.ask_for(job, ACTORS)


def test_steps_see_columns_as_ray_data_hands_them_over():
    found = columns([{"names": ("a",), "size": 1}, {"names": ("a", "b"), "size": 2}])
    assert found["names"].tolist() == [("a",), ("a", "b")] and found["size"].tolist() == [1, 2]
    assert isinstance(found["names"], np.ndarray)


def test_an_actor_computes_on_one_thread(tmp_path):
    """And leaves the threads of others as they were."""
    seen: list[object] = []
    torch.set_num_threads(2)

    class Looks:
        def __init__(self, job):
            seen.append(job)

        def __call__(self, row):
            seen.append(torch.get_num_threads())
            return row

    job = empty_job(tmp_path)
    photo_kernel(job, Step(Looks, Row, actor=True))(Row("a"))
    assert seen == [job, 1] and torch.get_num_threads() == 2


def test_it_needs_no_ray(tmp_path):
    LocalRunner().map_shards(empty_job(tmp_path), TASKS, IN_TASKS, TODO)
    assert "wsseg_ray.engine.ray_runner" not in sys.modules or "ray" in sys.modules
