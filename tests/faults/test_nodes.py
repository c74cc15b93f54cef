"""A whole Ray node is lost at once, with what ran on it; another one comes. Every fault in every stage:
`benchmarks/faults.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ray._private import worker
from ray.experimental import internal_kv

from benchmarks.faults import Trial, three_nodes
from tests.runs import photos_of, ran, same_rows
from wsseg_ray import recipe
from wsseg_ray.labelling import LABELS, WORK, label
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


@pytest.mark.long
def test_a_lost_node_costs_no_label(nodes, store, upload, tiny, tmp_path):
    """`wsseg predict`; the new photos, the run and the labels lie in an object store."""
    files, settings = photos_of(tiny)
    settings += [f"dataset.root={upload('lost-labels', files)}"]
    run = ran(recipe.load("demo", [*settings, "runtime.engine=local"]), RunDirectory.at(store[1]("labelled")))
    new = {Path(path).name: data for path, data in files.items() if path.endswith(".jpg")}
    photos = upload("lost-labels-new", new)
    label(run.root, photos, str(tmp_path / "disk"), "SN_B", engine="local")
    out = RunDirectory.at(store[1]("labels"))
    words = [sys.executable, "-m", "wsseg_ray", "predict", run.root, photos, "--out", out.root, "--network", "SN_B"]
    work = RunDirectory.at(out.uri(WORK))
    trial = Trial(nodes, work, LABELS.folder, words=words)
    trial.start()
    assert trial.wait_until(lambda: trial.processes(("Map", "MapWorker")) or work.now().shards(LABELS.folder))
    trial.lose_nodes(1)
    assert trial.end() == 0, trial.notes
    expected = {path.name: path.read_bytes() for path in (tmp_path / "disk").glob("*.png")}
    assert len(expected) == len(new) > 20
    assert {name: out.read_bytes(name) for name in out.names() if name.endswith(".png")} == expected
