"""kill -9 a scoring actor, a refine worker, trainers, the driver: no row lost, none twice, the same numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from tests.runs import copy, cut_off, entries, files, kill_driver, ran, same_rows, same_weights, weights
from wsseg_ray import recipe
from wsseg_ray.engine import training
from wsseg_ray.stages import refine, score, train_segmenter
from wsseg_ray.status import is_over
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, PROPOSALS, REFINED, SCORES

ROOT = Path(__file__).parents[2]
SELF_TAUGHT = ["hcp.loss=binary_cross_entropy", "hcp.pooling=context", "hcp.region_rounds=2", "hcp.region_epochs=2"]


def die_once(run: RunDirectory, name: str) -> None:
    """kill -9 this process, unless one did so before."""
    marker = Path(run.root, f"{name}.killed")
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class DyingScorer(score.Scorer):
    """Dies in the middle of the second shard."""

    seen = 0

    def __call__(self, row):
        self.seen += 1
        if self.seen == 6:
            die_once(self._job.run, "score")
        return super().__call__(row)


def dying_rows(job, shard, real=refine._moments_rows):
    if shard == job.run.shards("scores")[1]:
        die_once(job.run, "refine")
    return real(job, shard)


def test_a_killed_actor_and_a_killed_worker_cost_no_row(tiny_run, tiny, tmp_path, monkeypatch):
    undisturbed, run = tiny_run[1], copy(tiny_run[1], tmp_path)
    cut_off(run, "score", *(f"scores/{shard}.parquet" for shard in run.shards("scores")))
    cut_off(run, "refine", "refined")  # its sums are made anew
    monkeypatch.setattr(score, "Scorer", DyingScorer)
    monkeypatch.setattr(refine, "_moments_rows", dying_rows)
    run = ran(recipe.load("demo", tiny), run, "refine")
    assert Path(run.root, "score.killed").exists() and Path(run.root, "refine.killed").exists()
    for table, count in ((SCORES, 24), (REFINED, 12)):
        assert len(list(run.rows(table))) == count and same_rows(run, undisturbed, table), table


@pytest.mark.long
def test_a_killed_driver_loses_nothing(tiny_run, tiny, tmp_path):
    """kill -9 as soon as the first shard of proposals is there; the second run does the others and no more."""
    run = RunDirectory.at(str(tmp_path / "run"))
    kill_driver(run, tiny, "proposals", lambda: run.now().shards("proposals"))
    survived = run.now().shards("proposals")
    assert survived
    run = ran(recipe.load("demo", tiny), run, "proposals")
    assert entries(run)["proposals"]["rows"] == 12
    assert same_rows(run, tiny_run[1], IMAGES) and same_rows(run, tiny_run[1], PROPOSALS)


@pytest.mark.run
def test_a_driver_killed_while_regions_learn_changes_no_weight(tiny_local, tiny, tmp_path):
    """kill -9 in the first epochs of the region rounds; the second run goes on with the same teacher."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, killed = (copy(tiny_local[1], tmp_path / name) for name in ("whole", "killed"))
    settings = [*tiny, *SELF_TAUGHT, "runtime.engine=local"]
    whole = ran(recipe.load("demo", settings), whole, "train_hcp")
    kill_driver(killed, settings, "train_hcp", lambda: "region" in steps(killed))
    assert entries(killed)["train_hcp"]["state"] == "running"
    killed = ran(recipe.load("demo", settings), killed, "train_hcp")
    log = whole.read_json("hcp", "log.json")
    assert [entry["step"] for entry in log["log"]] == ["image", "hypothesis", *["region-0"] * 2, *["region-1"] * 2]
    assert killed.read_json("hcp", "log.json") == log
    assert files(killed, "hcp") == files(whole, "hcp") == ["log.json", "network.pt"]
    assert same_weights(killed, whole, "hcp", "network.pt")


def steps(run: RunDirectory) -> str:
    """Steps of the epochs that a training has kept so far."""
    run = run.now()
    if not run.exists("hcp", "state.pt"):
        return ""
    return " ".join(entry["step"] for entry in weights(run, "hcp", "state.pt")["log"])


SEGMENTERS = [
    "segmentation.networks=[AN_A]",
    "segmentation.ablation=false",
    "segmentation.batch_size=4",
    "segmentation.epochs=5",
    "runtime.checkpoint_minutes=0",
]


@pytest.fixture(scope="module")
def trained(tiny_run, tiny, tmp_path_factory) -> RunDirectory:
    """The run with a longer training of one network, undisturbed."""
    run = copy(tiny_run[1], tmp_path_factory.mktemp("trained"))
    run = ran(recipe.load("demo", [*tiny, *SEGMENTERS]), run, "train_segmenter")
    return run


def retrain(trained: RunDirectory, folder: Path) -> RunDirectory:
    run = copy(trained, folder)
    run.delete("segmenters", "AN_A")
    cut_off(run, "train_segmenter")
    return run


def interrupted(action: Callable[[], None], train: Callable[[], None]) -> None:
    """Train; `action` is called once, after five steps: two in the second epoch."""
    taken, real_step = [], training.step

    def step(*arguments):
        taken.append(real_step(*arguments))
        if len(taken) == 5:
            action()
        return taken[-1]

    with mock.patch.object(training, "step", step):
        train()


def dying_loop(names, round_, worker, real=train_segmenter._loop):
    """A trainer that dies after five steps."""
    interrupted(lambda: die_once(worker.job.run, "trainer"), lambda: real(names, round_, worker))


@pytest.mark.long
def test_a_killed_trainer_goes_on_in_mid_epoch_and_changes_no_weight(trained, tiny, tmp_path, monkeypatch):
    run = retrain(trained, tmp_path)
    monkeypatch.setattr(train_segmenter, "_loop", dying_loop)
    run = ran(recipe.load("demo", [*tiny, *SEGMENTERS]), run, "train_segmenter")
    assert Path(run.root, "trainer.killed").exists()
    same_training(run, trained)


def stopped_loop(names, round_, worker, real=train_segmenter._loop):
    """A trainer that stops its driver after five steps, as `ray job stop` does (SIGTERM), and then waits."""

    def stop() -> None:
        os.kill(int(worker.job.run.read_bytes("driver")), signal.SIGTERM)
        threading.Event().wait()

    interrupted(stop, lambda: real(names, round_, worker))


STOPPED_DRIVER = """
import os, pathlib, sys
from tests.stages.test_kills import stopped_loop
from wsseg_ray import cli
from wsseg_ray.stages import train_segmenter
pathlib.Path(sys.argv[1], "driver").write_text(str(os.getpid()))
train_segmenter._loop = stopped_loop
settings = [word for setting in sys.argv[2:] for word in ("--set", setting)]
sys.argv[1:] = ["run", "demo", "--run-dir", sys.argv[1], "--until", "train_segmenter", *settings]
cli.main()
"""


@pytest.mark.long
def test_a_stopped_job_goes_on_in_mid_epoch_and_changes_no_weight(trained, tiny, tmp_path):
    run = retrain(trained, tmp_path)
    settings = [*tiny, *SEGMENTERS]
    driver = [sys.executable, "-c", STOPPED_DRIVER, run.root, *settings]
    ended = subprocess.run(driver, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": "local"}, timeout=300, check=False)
    assert ended.returncode != 0
    assert run.read_json("status.json")["state"] == "stopped" and is_over(run)
    assert not run.exists("segmenters", "AN_A", "network.pt")
    run = ran(recipe.load("demo", settings), run, "train_segmenter")
    same_training(run, trained)


def same_training(run: RunDirectory, trained: RunDirectory) -> None:
    assert same_weights(run, trained, "segmenters", "AN_A", "network.pt")
    logs = [[entry["loss"] for entry in place.read_json("segmenters", "AN_A", "log.json")] for place in (trained, run)]
    assert logs[0] == logs[1] and len(logs[0]) == 5
    assert run.names("segmenters", "AN_A") == ["log.json", "network.pt"]
