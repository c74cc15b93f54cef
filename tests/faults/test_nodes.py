"""A whole Ray node is lost at once, with what ran on it; another one comes. Every fault in every stage:
`benchmarks/faults.py`."""

from __future__ import annotations

import shutil

import pytest
from ray._private import worker
from ray.experimental import internal_kv

from benchmarks.faults import Trial, three_nodes
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import SCORES


@pytest.fixture(scope="module")
def nodes(cluster):
    with three_nodes() as made:
        yield made
    # Its end makes this process forget the Ray that the other tests use.
    internal_kv._initialize_internal_kv(worker.global_worker.gcs_client)


def test_a_lost_node_costs_no_row(nodes, tiny_run, tiny, tmp_path):
    """In `score`, which has tasks before and after its actors."""
    stage, table = "score", SCORES
    undisturbed = tiny_run[1]
    shutil.copytree(undisturbed.root, tmp_path / "run")
    run = RunDirectory.at(str(tmp_path / "run"))
    run.delete(table.folder)
    run.write_json(run.read_json("stages", f"{stage}.json") | {"state": "running"}, "stages", f"{stage}.json")
    trial = Trial(nodes, run, stage, tiny)
    trial.start()
    assert trial.wait_until(lambda: trial.processes(("Map", "MapWorker")) or trial.under_way())
    trial.lose_nodes(1)
    assert trial.end() == 0, trial.notes
    rows = [row.image_id for row in run.rows(table)]
    expected = {row.image_id for row in undisturbed.rows(table)}
    assert sorted(rows) == sorted(expected) and len(rows) == 24
    assert not any(row.error for row in run.rows(table, ["error"]))
