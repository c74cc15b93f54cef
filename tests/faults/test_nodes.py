"""A whole Ray node is lost at once, with what ran on it; another one comes. Every fault in every stage:
`benchmarks/faults.py`."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.faults import Trial, three_nodes
from tests.test_pipeline import same_rows
from wsseg_ray.tables import RunDirectory


@pytest.mark.parametrize(("stage", "table"), [("supervise", "supervision"), ("score", "scores")])
def test_a_lost_node_costs_no_row(tiny_run, tiny, tmp_path, stage, table):
    undisturbed = tiny_run[1]
    shutil.copytree(undisturbed.root, tmp_path / "run")
    run = RunDirectory.at(str(tmp_path / "run"))
    run.delete(table)
    run.write_json(run.read_json("stages", f"{stage}.json") | {"state": "running"}, "stages", f"{stage}.json")
    with three_nodes() as cluster:
        trial = Trial(cluster, run, stage, tiny)
        trial.start()
        assert trial.wait_until(lambda: trial.processes(("Map", "MapWorker")) or trial.under_way())
        trial.lose_nodes(1)
        assert trial.end() == 0, trial.notes
    rows = [row["image_id"] for row in run.rows(table)]
    assert sorted(rows) == sorted({row["image_id"] for row in undisturbed.rows(table)}) and len(rows) == 12
    assert not any(row["error"] for row in run.rows(table, ["error"]))
    # Torch has one thread on these nodes, and two where the run was made: its sums are rounded otherwise.
    assert stage == "score" or same_rows(run, undisturbed, table)
