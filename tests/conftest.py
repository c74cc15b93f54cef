"""One Ray for all tests, and tiny runs of the demo that many of them look at.

`make unit` runs what needs no Ray and is no whole run. A test needs Ray if it uses the fixture `cluster`, or if its
module imports Ray. Such modules are not even imported in a unit run, and no test of it may import Ray.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Before torch and faiss are imported: on two cores their threads cost small arrays more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Of the S3 server of the tests, in this process and in those of Ray; never those of the person who runs them.
os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}

import hypothesis
import pytest

from wsseg_ray import pipeline, recipe
from wsseg_ray.datasets import demo
from wsseg_ray.storage import RunDirectory

# No test fails because the machine is busy.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

TINY = [
    "dataset.layout=voc",
    "dataset.limit=12",
    "proposals.count=40",
    "hcp.image_epochs=1",
    "hcp.hypothesis_epochs=1",
    "segmentation.epochs=1",
    "segmentation.learning_rate=0.03",  # so that networks see more than background
    "segmentation.networks=[AN_A, SN_B, FULL]",
    "crf.iterations=2",
]
ROOT = Path(__file__).parent.parent


def is_unit_run(config: pytest.Config) -> bool:
    return "not ray" in config.option.markexpr


@cache
def imports_ray(file: Path) -> bool:
    """Whether importing a file of the project imports Ray."""
    found = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    if any(name.split(".")[0] == "ray" for name in found):
        return True
    files = [ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in found]
    return any(imports_ray(own) for own in files if own.is_file())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if is_test and is_unit_run(config) and imports_ray(collection_path) else None


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()) or imports_ray(item.path):
            item.add_marker("ray")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    if is_unit_run(item.config) and "ray" in sys.modules:
        pytest.fail("a unit test has imported Ray: it must use the fixture `cluster`, or do without")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Ray on this machine alone; never a cluster that happens to run here."""
    import ray

    from wsseg_ray.engine.ray_runner import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
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
    """The demo on Ray, whole and undisturbed."""
    place = str(tmp_path_factory.mktemp("tiny") / "run")
    return pipeline.run(recipe.load("demo", tiny), place), RunDirectory.at(place).now()


@pytest.fixture(scope="session")
def tiny_local(tiny, tmp_path_factory) -> tuple[pipeline.Outcome, RunDirectory]:
    """The same without Ray. Look at it, and copy it to change it."""
    place = str(tmp_path_factory.mktemp("local") / "run")
    return pipeline.run(recipe.load("demo", [*tiny, "runtime.engine=local"]), place), RunDirectory.at(place).now()
