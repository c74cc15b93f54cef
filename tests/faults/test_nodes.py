"""A whole Ray node is lost at once, with what ran on it; another one comes. Every fault in every stage:
`benchmarks/faults.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray
import torch
from ray._private import worker
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.experimental import internal_kv

from benchmarks.faults import ACTORS, STORE_BYTES, Trial, three_nodes
from tests.runs import copy, photos_of, ran, same_rows
from wsseg_ray import recipe
from wsseg_ray.engine.checkpoints import WEIGHTS, restore
from wsseg_ray.engine.ray_runner import PROGRESS
from wsseg_ray.engine.training import Saver, resumed
from wsseg_ray.labelling import LABELS, WORK, label
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import SCORES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nodes(cluster):
    with three_nodes() as made:
        yield made
    # Its end makes this process forget the Ray that the other tests use.
    internal_kv._initialize_internal_kv(worker.global_worker.gcs_client)


@pytest.mark.long
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


TWO_OR_ONE = [
    "segmentation.networks=[AN_A]",
    "segmentation.ablation=false",
    "segmentation.freeze=all",  # BatchNorm with statistics of its own batch is another function on half of it
    "segmentation.batch_size=4",
    "segmentation.epochs=15",
    "segmentation.learning_rate=0.0001",  # so rounding does not grow
    "runtime.checkpoint_minutes=0",
    "runtime.stages.train_segmenter={cpus: 2, min_workers: 1, max_workers: 2}",  # a large machine each
]


@pytest.mark.long
def test_a_training_goes_on_with_the_workers_that_are_left(nodes, tiny, tiny_local, tmp_path, monkeypatch):
    """Two workers on a machine each; one is lost, and none comes: the other ends with the same weights."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")  # so long it waits for the lost one: else 60
    settings = [*tiny, *TWO_OR_ONE]
    runs = {}
    for engine in ("local", "ray"):
        (tmp_path / engine).mkdir()
        runs[engine] = copy(tiny_local[1], tmp_path / engine)
    alone = ran(recipe.load("demo", [*settings, "runtime.engine=local"]), runs["local"], "train_segmenter")
    trial = Trial(nodes, runs["ray"], "train_segmenter", settings)
    large = [nodes.add_node(num_cpus=2, object_store_memory=STORE_BYTES) for _ in range(2)]
    try:
        trial.start()
        assert trial.wait_until(lambda: trial.under_way() and len(trial.processes(ACTORS)) == 2), trial.notes
        nodes.remove_node(large.pop(), allow_graceful=False)
        assert trial.end() == 0, trial.notes
    finally:
        for node in large:
            nodes.remove_node(node)
    run = runs["ray"].now()
    assert run.read_json("segmenters", PROGRESS)["workers"] == 1
    found, expected = (restore(one, "segmenters", "AN_A", WEIGHTS) for one in (run, alone))
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5, msg=key)


def leave(worker) -> None:
    """A training whose node is to be taken away after three steps, and is away after six."""
    run, state = worker.job.run, resumed(worker, "hcp", "state.pt")
    first = state["done"] if state else 0
    with Saver(worker) as saver:
        for step in range(first, 8):
            if step == 3 and not state:
                node = ray.get_runtime_context()
                reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
                ray._raylet.GcsClient(node.gcs_address).drain_node(node.get_node_id(), reason, "spot", 0)
                while not worker.is_preempted():
                    threading.Event().wait(0.1)
            run.write_json(step, "hcp", f"{step}-{first}.json")
            if saver.is_due():
                saver.save({"done": step + 1}, "hcp", "state.pt")
                saver.wait()
                if step == 5:
                    os._exit(1)


LEAVING = """
import pathlib, sys
import ray
from tests.engine.runner_contract import TRAINERS
from tests.faults.test_nodes import leave
from tests.runs import empty_job
from wsseg_ray.engine.ray_runner import RayRunner
ray.init(runtime_env={"env_vars": {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}})
RayRunner().fit(empty_job(pathlib.Path(sys.argv[1]), "runtime.checkpoint_minutes=60"), TRAINERS, leave, 8, None)
"""


@pytest.mark.long
def test_a_training_is_saved_when_its_node_will_go(nodes, tmp_path):
    """Ray is told what the provider of a spot machine says; then the machine is gone, and no step is done twice."""
    environment = {**os.environ, "RAY_ADDRESS": nodes.address}
    subprocess.run([sys.executable, "-c", LEAVING, str(tmp_path)], cwd=ROOT, env=environment, check=True, timeout=300)
    (folder,) = tmp_path.rglob("hcp")
    done = sorted(path.stem for path in folder.glob("?-?.json"))
    assert done == [f"{step}-0" for step in range(6)] + ["6-6", "7-6"]
