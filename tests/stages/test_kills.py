"""kill -9 a scoring actor, a refine worker, the driver in mid-training: no row lost, none twice, the same numbers."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import torch

from tests.test_pipeline import copy, kill_driver, made, same_rows
from wsseg_ray import pipeline, recipe
from wsseg_ray.stages import refine, score
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
        keep = ("pca.npz",) if table == "scores" else ()
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
    for table in ("scores", "refined"):
        assert len(list(run.rows(table))) == 12 and same_rows(run, undisturbed, table), table


def test_a_driver_killed_while_regions_learn_changes_no_weight(cluster, tiny, tmp_path):
    """kill -9 in the first epochs of the region rounds; the second run goes on with the same teacher."""
    whole, killed = (RunDirectory.at(str(tmp_path / name)) for name in ("whole", "killed"))
    settings = [*tiny, *SELF_TAUGHT]
    pipeline.run(recipe.load("demo", settings), whole.root, "train_hcp")
    kill_driver(killed, settings, "train_hcp", lambda: "region" in steps(killed))
    assert made(killed)["train_hcp"]["state"] == "running"
    pipeline.run(recipe.load("demo", settings), killed.root, "train_hcp")
    log = whole.read_json("hcp", "log.json")
    assert [entry["step"] for entry in log["log"]] == ["image", "hypothesis", *["region-0"] * 2, *["region-1"] * 2]
    assert killed.read_json("hcp", "log.json") == log
    assert killed.names("hcp") == whole.names("hcp") == ["log.json", "network.pt", "progress.json", "state.pt"]
    before, after = (
        torch.load(io.BytesIO(run.read_bytes("hcp", "network.pt")), weights_only=True) for run in (whole, killed)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def steps(run: RunDirectory) -> str:
    """Steps of the epochs that a training has kept so far."""
    if not run.exists("hcp", "state.pt"):
        return ""
    state = torch.load(io.BytesIO(run.read_bytes("hcp", "state.pt")), weights_only=True)
    return " ".join(entry["step"] for entry in state["log"])
