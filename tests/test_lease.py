"""A run directory has one run at a time; one that was left by a dead process is free at once."""

import os
import subprocess
import sys
import threading

import pytest

from wsseg_ray import lease
from wsseg_ray.errors import RecipeError
from wsseg_ray.lease import LEASE, held
from wsseg_ray.storage import RunDirectory


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.at(str(tmp_path / "run"))


def no_wait(seconds: float) -> None:
    raise AssertionError("it is known without waiting")


def test_a_second_run_is_refused_and_the_directory_is_free_afterwards(run):
    with held(run):
        words = rf"is in use by process {os.getpid()} on .*give another --run-dir"
        with pytest.raises(RecipeError, match=words), held(run, no_wait):
            pass
        assert run.exists(LEASE), "the refused one takes nothing away"
    assert not run.exists(LEASE)
    with held(run, no_wait):
        pass


def test_a_run_that_failed_leaves_no_lease(run):
    with pytest.raises(ZeroDivisionError), held(run):
        raise ZeroDivisionError
    assert not run.exists(LEASE)


def test_the_lease_of_a_killed_process_is_free_at_once(run):
    code = f"import os\nfrom wsseg_ray.lease import held\nfrom wsseg_ray.storage import RunDirectory\n\
with held(RunDirectory.at({run.root!r})):\n    os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert run.exists(LEASE)
    with held(run, no_wait):
        pass


def test_a_process_with_the_number_of_a_dead_one_is_another(run):
    with held(run):
        found = run.read_json(LEASE)
    run.write_json({**found, "started": "1"}, LEASE)
    with held(run, no_wait):
        assert run.read_json(LEASE)["owner"] != found["owner"]


def elsewhere(run: RunDirectory) -> dict:
    with held(run):
        found = run.read_json(LEASE)
    return {**found, "machine": "another", "host": "far", "pid": 7, "owner": "somebody"}


def test_a_lease_of_another_machine_is_over_when_it_stands_still(run, capsys):
    other = elsewhere(run)
    run.write_json(other, LEASE)
    waited = []
    with held(run, waited.append):
        assert run.read_json(LEASE)["owner"] != "somebody"
    assert waited == [lease.PATIENCE] and "may be in use by process 7 on far" in capsys.readouterr().err


def test_a_lease_of_another_machine_that_is_renewed_is_respected(run):
    """Whatever its clock says."""
    other = {**elsewhere(run), "since": "1970-01-01 00:00:00 +0000"}
    run.write_json(other, LEASE)

    def wait(_: float) -> None:
        run.write_json({**other, "beat": other["beat"] + 1}, LEASE)

    with pytest.raises(RecipeError, match="is in use by process 7 on far, since 1970"), held(run, wait):
        pass
    assert run.read_json(LEASE)["owner"] == "somebody"


def test_a_run_stops_where_another_takes_the_directory(run, monkeypatch, capsys):
    """As after a night in which the machine slept. The new lease stays."""
    interrupted = threading.Event()
    monkeypatch.setattr(lease, "BEAT", 0.01)
    monkeypatch.setattr(lease._thread, "interrupt_main", interrupted.set)
    other = elsewhere(run)
    with held(run):
        while run.read_json(LEASE)["beat"] < 2:  # it is renewed
            pass
        run.write_json(other, LEASE)
        while not interrupted.is_set():
            run.write_json(other, LEASE)  # a beat that was under way may have written over it
    assert run.read_json(LEASE)["owner"] == "somebody"
    assert "was taken over by process 7 on far" in capsys.readouterr().err
