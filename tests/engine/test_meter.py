"""How far a stage is: status.json, and what a runner's own metrics are told."""

import pytest

from tests.runs import empty_job
from wsseg_ray.engine import meter
from wsseg_ray.engine.meter import STATUS, STATUS_EVERY, Meter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(meter, "time", found)
    return found


@pytest.fixture
def job(tmp_path):
    return empty_job(tmp_path)


def test_a_status_from_begin_to_end(job, clock):
    told = []
    progress = Meter(job, "score", "shards", 4, 2, lambda: {"CPU": 2, "GPU": 0}, lambda new, _: told.append(new))
    with progress:
        assert job.run.read_json(STATUS)["state"] == "running" and job.run.read_json(STATUS)["done"] == 0
        clock.now += STATUS_EVERY / 2
        progress.add(1, {"rows": 8, "failed": 1, "read": 0.5, "write": 0.25, "busy": 1.0, "waited": -1.0}, "8 photos")
        assert job.run.read_json(STATUS)["done"] == 0, "it is not written for every shard"
        clock.now += STATUS_EVERY
        progress.add(1, {"rows": 8, "busy": 2.0}, "16 photos")
        status = job.run.read_json(STATUS)
        assert (status["done"], status["total"], status["unit"], status["note"]) == (2, 4, "shards", "16 photos")
        assert (status["rows"], status["failed"], status["task"], status["busy"], status["waited"]) == (
            16,
            1,
            0.75,
            3,
            0,
        )
        assert status["seconds"] == 1.5 * STATUS_EVERY and status["busy_share"] == pytest.approx(3 / 3 / 2)
        assert status["cluster"] == {"CPU": 2, "GPU": 0}
    assert job.run.read_json(STATUS)["state"] == "done"
    assert [one["rows"] for one in told] == [0, 16, 0], "each amount is told once"


def test_a_stage_without_workers_has_no_busy_share(job, clock):
    with Meter(job, "refine", "shards", 1, 0, dict) as progress:
        clock.now += 10
        progress.add(1, {"rows": 1, "read": 3.0}, "")
    status = job.run.read_json(STATUS)
    assert status["busy_share"] is None and status["task"] == 3.0


def test_a_stage_that_fails_was_stopped(job, clock):
    with pytest.raises(KeyboardInterrupt), Meter(job, "refine", "shards", 1, 0, dict):
        raise KeyboardInterrupt
    assert job.run.read_json(STATUS)["state"] == "stopped"
