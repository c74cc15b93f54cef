"""A whole Ray node is lost at once, with what ran on it; another one comes. Every fault in every stage:
`benchmarks/faults.py`."""

from __future__ import annotations

import pytest
from ray._private import worker
from ray.experimental import internal_kv

from benchmarks.faults import Trial, three_nodes
from tests.runs import photos_of, ran, same_rows
from wsseg_ray import recipe
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import SCORES


@pytest.fixture(scope="module")
def nodes(cluster):
    with three_nodes() as made:
        yield made
    # Its end makes this process forget the Ray that the other tests use.
    internal_kv._initialize_internal_kv(worker.global_worker.gcs_client)


def test_a_lost_node_costs_no_row(nodes, store, upload, tiny, tiny_local):
    """In `score`, which has tasks before and after its actors; photos and run lie in an object store."""
    files, settings = photos_of(tiny)
    run = RunDirectory.at(store[1]("lost-node"))
    settings += [f"dataset.root={upload('lost', files)}"]
    run = ran(recipe.load("demo", [*settings, "runtime.engine=local"]), run, "train_hcp")
    trial = Trial(nodes, run, "score", settings)
    trial.start()
    assert trial.wait_until(lambda: trial.processes(("Map", "MapWorker")) or trial.under_way())
    trial.lose_nodes(1)
    assert trial.end() == 0, trial.notes
    assert not any(row.error for row in run.rows(SCORES, ["error"]))
    assert len(list(run.rows(SCORES))) == 24 and same_rows(run, tiny_local[1], SCORES)
