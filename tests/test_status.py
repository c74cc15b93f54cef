"""What a terminal shows of a run that is elsewhere: every state a stage can be in."""

import time

import pytest

from wsseg_ray.errors import RecipeError
from wsseg_ray.status import is_over, lines
from wsseg_ray.storage import RunDirectory

STAGES = ["images", "proposals", "train_hcp", "score", "refine", "supervise", "train_segmenter", "predict"]
DONE = {"state": "done", "rows": 12, "failed": 1, "seconds": 3.4}
STATUS = {
    "stage": "score",
    "state": "running",
    "unit": "shards",
    "done": 3,
    "total": 12,
    "seconds": 60.0,
    "rows": 90.0,
    "failed": 2.0,
    "busy_share": 0.93,
    "note": "90 photos",
}


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    run = RunDirectory.at(str(tmp_path))
    run.write_json({"stages": {name: name for name in STAGES}}, "run.json")
    for stage in ("images", "proposals", "train_hcp"):
        run.write_entry(DONE, stage)
    run.write_entry({"state": "running"}, "score")
    return run


def test_a_run_under_way(run):
    run.write_json({**STATUS, "at": time.time()}, "status.json")
    found = lines(run)
    assert found[0] == "images           done      12 photos in 3 s, 1 failed"
    assert found[3] == (
        "score            running    25 %, 3 of 12 shards; 1.5 photos/s; 3 min left; actors at work 93 % of the time; "
        "2 failed; 90 photos"
    )
    assert found[4:] == [f"{name:<16} waiting" for name in ("refine", "supervise", "train_segmenter", "predict")]
    assert not is_over(run)


def test_a_run_that_stands_still_or_was_stopped(run):
    run.write_json({**STATUS, "at": time.time() - 7200}, "status.json")
    assert lines(run)[3].endswith("no progress for 2.0 h") and not is_over(run)
    run.write_json({**STATUS, "state": "stopped", "at": 0}, "status.json")
    assert lines(run)[3].endswith("run again to continue") and is_over(run)


def test_a_stage_that_has_not_told_yet(run):
    assert lines(run)[3] == "score            starting"
    run.write_json({**STATUS, "stage": "train_hcp", "at": 0}, "status.json")
    assert lines(run)[3] == "score            starting"


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RecipeError, match=r"is no run: it holds no run\.json"):
        lines(RunDirectory.at(str(tmp_path / "nowhere")))


def test_a_folder_with_a_password(monkeypatch):
    monkeypatch.setattr(RunDirectory, "read_json", lambda *_: None)
    with pytest.raises(RecipeError, match=r"^s3://b/run is no run"):
        lines(RunDirectory.at("s3://key:secret@b/run"))


def test_stages_of_ones_own_and_rounds_are_shown(run):
    run.write_json({"stages": {name: name for name in ("images", "mine", "relabel-1")}}, "run.json")
    assert [line.split()[0] for line in lines(run)] == ["images", "mine", "relabel-1"]


def test_a_run_that_is_done(tiny_local):
    assert is_over(tiny_local[1]) and len(lines(tiny_local[1])) == 8
    assert all(" done " in line for line in lines(tiny_local[1]))
