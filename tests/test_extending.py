"""Every example of docs/extending.md runs on the demo, from a folder outside the package."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from wsseg_ray import pipeline, recipe
from wsseg_ray.datasets import demo
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import SCORES, SUPERVISION, SupervisionRow, Table

pytestmark = pytest.mark.run
PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
TITLE, FILE, CODE, CHANGE = (
    r"## ([^\n]+)\n(?:(?!\n## ).)*?",
    r"`(\w+)\.py`:\n\n",
    r"```python\n(.*?)```\n\n",
    r"```yaml\n(.*?)```",
)
EXAMPLE = re.compile(TITLE + FILE + CODE + CHANGE, re.DOTALL)
EXAMPLES = {title: (module, code, yaml_text) for title, module, code, yaml_text in EXAMPLE.findall(PAGE)}

SMALL = """
seed: 0
dataset: {layout: demo, limit: 12}
proposals: {count: 40}
hcp: {backbone: small, weights: null, image_epochs: 1, hypothesis_epochs: 1, loss: cross_entropy, min_area: 60}
segmentation: {networks: [SN_B], backbone: small, weights: null, epochs: 1, batch_size: 4, crop: 65}
crf: {enabled: false}
runtime: {engine: local}
"""


def merged(base: dict, more: dict) -> dict:
    both = {key: {**base.get(key, {}), **value} if isinstance(value, dict) else value for key, value in more.items()}
    return {**base, **both}


def named_photos(folder: Path) -> None:
    """Photos whose names say what is in them, in the folders train and val."""
    for split, name in (("train_aug", "train"), ("val", "val")):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(6):
            photo, mask = demo.draw_photo(0, index, split)
            labels = "+".join(demo.CLASSES[value - 1] for value in np.unique(mask) if value)
            demo.Image.fromarray(photo).save(folder / "photos" / name / f"{labels}_{name}{index}.jpg")


def run_example(titles: list[str], folder: Path, engine: str = "local", until: str | None = None) -> RunDirectory:
    changes: dict = {"runtime": {"engine": engine}}
    for title in titles:
        module, code, yaml_text = EXAMPLES[title]
        (folder / f"{module}.py").write_text(code)
        changes = merged(changes, yaml.safe_load(yaml_text))
    if changes.get("dataset", {}).get("root"):
        named_photos(folder)
        changes["dataset"]["root"] = str(folder / changes["dataset"]["root"])
        changes["dataset"]["limit"] = None
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(SMALL), changes)))
    outcome = pipeline.run(recipe.load(str(path)), str(folder / "run"), until)
    assert not outcome.failed
    return RunDirectory.at(str(folder / "run")).now()


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    for module, _, _ in EXAMPLES.values():
        sys.modules.pop(module, None)
    sys.path[:] = [place for place in sys.path if not place.startswith(str(tmp_path))]


def test_there_are_six():
    assert len(EXAMPLES) == 6


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_example(title, folder):
    run = run_example([title], folder)
    metrics = run.read_json("metrics.json")
    assert metrics["networks"]["SN_B"]["log"][0]["loss"] > 0
    if title.startswith("A stage"):
        after = list(run.rows(Table("supervision_sure", SupervisionRow)))
        before = {row.image_id: row for row in run.rows(SUPERVISION)}
        assert metrics["stages"]["sure"]["rows"] == len(before) == 12
        assert any((row.mask == 255).any() and (row.mask != before[row.image_id].mask).any() for row in after)


@pytest.mark.long
def test_variants_are_found_by_rays_workers(folder, cluster):
    """Actors, trainers and tasks import what lies beside the recipe. The stages before them need no Ray."""
    titles = ["A scorer of regions", "A stage between `supervise` and `train_segmenter`", "A segmentation head"]
    run_example(titles, folder, until="train_hcp")
    run = run_example(titles, folder, "ray", "train_segmenter")
    assert [len(list(run.rows(table))) for table in (SCORES, Table("supervision_sure", SupervisionRow))] == [24, 12]
    assert run.exists("segmenters", "SN_B", "network.pt")


def test_a_variant_is_found_where_the_run_is_opened_again(folder):
    """The run knows the folder of its variants, so that prediction finds them."""
    title = "A segmentation head"
    run = run_example([title], folder)
    sys.modules.pop(EXAMPLES[title][0])
    sys.path[:] = [place for place in sys.path if not place.startswith(str(folder))]
    assert "report.html" in pipeline.write_report(run.root)
    shutil.rmtree(run.root)
