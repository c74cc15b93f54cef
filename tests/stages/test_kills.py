"""kill -9 a scoring actor, a refine worker, trainers, the driver: no row lost, none twice, the same numbers."""

from __future__ import annotations

import functools
import io
import os
import shutil
import signal
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.test_pipeline import copy, kill_driver, made, same_rows
from wsseg_ray import pipeline, recipe
from wsseg_ray.stages import refine, score, train_segmenter, training
from wsseg_ray.status import is_over
from wsseg_ray.tables import RunDirectory

SELF_TAUGHT = ["hcp.loss=binary_cross_entropy", "hcp.pooling=context", "hcp.region_rounds=2", "hcp.region_epochs=2"]


def die_once(run: RunDirectory, name: str) -> None:
    """kill -9 this process, unless one did so before."""
    marker = Path(run.root, f"{name}.killed")
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class DyingScorer(score._Scorer):
    """Dies in the middle of the second shard."""

    seen = 0

    def __call__(self, row):
        self.seen += 1
        if self.seen == 6:
            die_once(self._job.run, "score")
        return super().__call__(row)


def dying_rows(job, shard, sums, real=refine._moments_rows):
    if shard == job.run.shards("scores")[1]:
        die_once(job.run, "refine")
    return real(job, shard, sums)


def undone(run: RunDirectory, stages: dict[str, str]) -> None:
    """Take back stages and their tables."""
    for stage, table in stages.items():
        keep = ("pca.npz",) if table == "scores" else ()  # the sums of `refined` are made anew
        for name in run.names(table):
            if name not in keep:
                run.delete(table, name)
        run.write_json(run.read_json("stages", f"{stage}.json") | {"state": "running"}, "stages", f"{stage}.json")


def test_a_killed_actor_and_a_killed_worker_cost_no_row(tiny_run, tiny, tmp_path, monkeypatch):
    undisturbed, run = tiny_run[1], copy(tiny_run[1], tmp_path)
    undone(run, {"score": "scores", "refine": "refined"})
    monkeypatch.setattr(score, "_Scorer", DyingScorer)
    monkeypatch.setattr(refine, "_moments_rows", dying_rows)
    pipeline.run(recipe.load("demo", tiny), run.root, "refine")
    assert Path(run.root, "score.killed").exists() and Path(run.root, "refine.killed").exists()
    for table, count in (("scores", 24), ("refined", 12)):
        assert len(list(run.rows(table))) == count and same_rows(run, undisturbed, table), table


def test_a_driver_killed_while_regions_learn_changes_no_weight(tiny_run, tiny, tmp_path):
    """kill -9 in the first epochs of the region rounds; the second run goes on with the same teacher."""
    whole, killed = (copy(tiny_run[1], tmp_path / name) for name in ("whole", "killed"))
    settings = [*tiny, *SELF_TAUGHT]
    pipeline.run(recipe.load("demo", settings), whole.root, "train_hcp")
    kill_driver(killed, settings, "train_hcp", lambda: "region" in steps(killed))
    assert made(killed)["train_hcp"]["state"] == "running"
    pipeline.run(recipe.load("demo", settings), killed.root, "train_hcp")
    log = whole.read_json("hcp", "log.json")
    assert [entry["step"] for entry in log["log"]] == ["image", "hypothesis", *["region-0"] * 2, *["region-1"] * 2]
    assert killed.read_json("hcp", "log.json") == log
    assert killed.names("hcp") == whole.names("hcp") == ["log.json", "network.pt", "progress.json", "state.pt"]
    before, after = (weights(run, "hcp", "network.pt") for run in (whole, killed))
    assert all(torch.equal(before[name], after[name]) for name in before)


def steps(run: RunDirectory) -> str:
    """Steps of the epochs that a training has kept so far."""
    if not run.exists("hcp", "state.pt"):
        return ""
    state = weights(run, "hcp", "state.pt")
    return " ".join(entry["step"] for entry in state["log"])


SEGMENTERS = [
    "segmentation.networks=[AN_A]",
    "segmentation.ablation=false",
    "segmentation.batch_size=4",
    "segmentation.epochs=5",
    "runtime.checkpoint_minutes=0",
]


def weights(run: RunDirectory, *place: str) -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO(run.read_bytes(*place)), weights_only=True)


@pytest.fixture(scope="module")
def trained(tiny_run, tiny, tmp_path_factory) -> RunDirectory:
    """A network that was trained undisturbed."""
    run = copy(tiny_run[1], tmp_path_factory.mktemp("trained"))
    pipeline.run(recipe.load("demo", [*tiny, *SEGMENTERS]), run.root, "train_segmenter")
    return run


def retrain(trained: RunDirectory, place: Path) -> RunDirectory:
    """A copy of the run whose network is still to be trained."""
    shutil.copytree(trained.root, place)
    run = RunDirectory.at(str(place))
    run.delete("segmenters")
    entry = run.read_json("stages", "train_segmenter.json")
    run.write_json(entry | {"state": "running"}, "stages", "train_segmenter.json")
    return run


def dying_loop(names, round_, config, real=train_segmenter._loop):
    """Dies in the middle of the second epoch."""
    steps, real_step = [], training.step

    def step(*arguments):
        steps.append(real_step(*arguments))
        if len(steps) == 5:
            die_once(config["job"].run, "trainer")
        return steps[-1]

    with mock.patch.object(training, "step", step):
        real(names, round_, config)


def test_a_killed_trainer_goes_on_in_mid_epoch_and_changes_no_weight(trained, tiny, tmp_path, monkeypatch):
    run = retrain(trained, tmp_path / "run")
    monkeypatch.setattr(train_segmenter, "_loop", dying_loop)
    pipeline.run(recipe.load("demo", [*tiny, *SEGMENTERS]), run.root, "train_segmenter")
    assert Path(run.root, "trainer.killed").exists()
    same_training(run, trained)


def test_a_stopped_job_goes_on_in_mid_epoch_and_changes_no_weight(trained, tiny, tmp_path):
    """What `ray job stop` does to a driver: SIGTERM."""
    run = retrain(trained, tmp_path / "run")
    settings = [*tiny, *SEGMENTERS]
    begun = functools.partial(run.exists, "segmenters", "AN_A", "state.pt")
    kill_driver(run, settings, "train_segmenter", begun, signal.SIGTERM)
    assert run.read_json("status.json")["state"] == "stopped" and is_over(run)
    assert not run.exists("segmenters", "AN_A", "network.pt")
    pipeline.run(recipe.load("demo", settings), run.root, "train_segmenter")
    same_training(run, trained)


def same_training(run: RunDirectory, trained: RunDirectory) -> None:
    before, after = (weights(place, "segmenters", "AN_A", "network.pt") for place in (trained, run))
    assert all(torch.equal(before[name], after[name]) for name in before)
    logs = [[entry["loss"] for entry in place.read_json("segmenters", "AN_A", "log.json")] for place in (trained, run)]
    assert logs[0] == logs[1] and len(logs[0]) == 5
    assert run.names("segmenters", "AN_A") == ["log.json", "network.pt"]
