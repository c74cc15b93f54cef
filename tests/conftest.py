"""One Ray for all tests, and one tiny run of the demo that many of them look at."""

from __future__ import annotations

import os

# Before torch and faiss are imported: on two cores their threads cost small arrays more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import ray

from wsseg_ray import pipeline, recipe
from wsseg_ray.datasets import demo
from wsseg_ray.tables import RunDirectory

TINY = [
    "dataset.layout=voc",
    "dataset.limit=12",
    "proposals.count=40",
    "hcp.image_epochs=1",
    "hcp.hypothesis_epochs=1",
    "segmentation.epochs=1",
    "segmentation.networks=[AN_A, SN_B, FULL]",
    "crf.iterations=2",
]


@pytest.fixture(scope="session")
def cluster():
    """Ray on this machine alone; never a cluster that happens to run here."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> list[str]:
    """Settings of the demo on 12 drawn photos a split, kept outside the run, so that a copy of a run is the run."""
    root = tmp_path_factory.mktemp("photos")
    demo.draw(root, 0, 12)
    return [*TINY, f"dataset.root={root}"]


@pytest.fixture(scope="session")
def tiny_run(cluster, tiny, tmp_path_factory) -> tuple[pipeline.Outcome, RunDirectory]:
    """The demo, whole and undisturbed."""
    place = str(tmp_path_factory.mktemp("tiny") / "run")
    return pipeline.run(recipe.load("demo", tiny), place), RunDirectory.at(place)
