"""The Python interface: what `import wsseg_ray` offers, without Ray."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wsseg_ray
from wsseg_ray import labelling, recipe
from wsseg_ray.choices import settle
from wsseg_ray.errors import DatasetError, RecipeError


def test_every_name_is_there_and_documented():
    assert set(wsseg_ray.__all__) == set(wsseg_ray._PLACES)
    for name in wsseg_ray.__all__:
        assert getattr(wsseg_ray, name).__doc__ and (name in wsseg_ray.__doc__ or name == "TrainedNetwork")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = wsseg_ray.nothing


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, wsseg_ray; print(sorted({'torch', 'ray', 'numpy'} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


@pytest.mark.run
def test_array_functions_need_no_ray():
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from wsseg_ray import generate_proposals, localization_maps, refine_distances, rough_mask, load, run"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_photo_is_labelled_like_on_the_command_line(tiny_local, tiny, tmp_path):
    root = next(value for value in tiny if value.startswith("dataset.root=")).partition("=")[2]
    photo = Path(root) / "JPEGImages" / "demo_val_00000.jpg"
    network = wsseg_ray.load(tiny_local[1].root, "SN_B")
    labelling.label(tiny_local[1].root, str(photo), str(tmp_path), "SN_B")
    expected = np.asarray(Image.open(tmp_path / "demo_val_00000.png"))
    decoded = np.asarray(Image.open(photo))
    for given in (photo, str(photo), Image.open(photo), decoded):
        assert (network.predict(given) == expected).all()
    assert network.predict(Image.open(photo).convert("CMYK")).shape == expected.shape, "no mode of a PNG"
    assert network.name == "SN_B" and len(network.classes) == 6


def test_a_network_that_is_not_there(tiny_local):
    with pytest.raises(RecipeError, match=r"no network 'SN_C'; it has AN_A"):
        wsseg_ray.load(tiny_local[1].root, "SN_C")


GIVEN = ["hcp.image_epochs=1", "hcp.hypothesis_epochs=1", "hcp.region_epochs=1", "hcp.decay_every=1"]


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (["labels.csv"], "folder"),
        (["labels.json", "cats/a.jpg"], "folder"),
        (["train/metadata.jsonl", "train/a.jpg"], "folder"),
        (["JPEGImages/a.jpg"], "voc"),
        (["annotations/instances_val2017.json", "val2017/a.jpg"], "coco"),
        (["train/_annotations.coco.json", "train/a.jpg"], "coco"),
        (["cats/a.jpg"], "classes"),
        (["train/cats/a.jpg", "val/cats/b.jpg"], "classes"),
    ],
)
def test_the_layout_of_a_folder_is_seen(tmp_path, files, layout):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found, choices = settle(
        recipe.load(str(tmp_path), [*GIVEN, "segmentation.epochs=1", "segmentation.rounds=0", "hcp.backbone=small"])
    )
    assert (found.dataset.layout, found.dataset.root) == (layout, str(tmp_path))
    assert found.dataset.train_split == "train" and choices[0].key == "dataset.layout"


def test_a_folder_without_labels(tmp_path):
    with pytest.raises(DatasetError, match="neither a file of labels"):
        wsseg_ray.run(tmp_path, tmp_path / "run")


def test_a_recipe_object_is_run_as_it_is(tiny, tmp_path):
    found = recipe.load("demo", [*tiny, "runtime.engine=local"])
    outcome = wsseg_ray.run(found, tmp_path / "run", until="images")
    assert outcome.failed == {} and (tmp_path / "run" / "images").is_dir()
    with pytest.raises(ValueError, match="settings change a recipe"):
        wsseg_ray.run(found, tmp_path / "run", ["seed=1"])
