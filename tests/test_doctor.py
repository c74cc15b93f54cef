"""What a recipe needs of the machine, and what each of its stages says that it needs."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from wsseg_ray import doctor, recipe
from wsseg_ray.engine.stage import Finding


def examined(*settings: str) -> dict[str, list[Finding]]:
    """Findings by name."""
    found: dict[str, list[Finding]] = {}
    for finding in doctor.examine(recipe.load("demo", list(settings))):
        found.setdefault(finding.name, []).append(finding)
    return found


def test_all_is_there(tiny):
    found = examined(*tiny)
    assert list(found) == ["data", "disk", "classes", "alike", "weights", "faiss", "gpu"]
    assert all(finding.good for own in found.values() for finding in own)
    assert found["data"][0].text.startswith("12 training and 12 val photos, 24 with masks, 6 classes")
    assert [finding.text for finding in found["weights"]] == [
        "HCP: none; all layers start at random",
        "largefov: the backbone of this run's HCP",
    ]


def test_what_is_missing_is_said_all_at_once(tiny, tmp_path):
    settings = [
        "hcp.weights=none.pth",
        "proposals={backbone: vgg16, weights: gone.pth}",
        "refinement={engine: moments, metric: cosine}",
    ]
    found = examined(*tiny, *settings, f"dataset.root={tmp_path}/none")
    bad = {name for name, own in found.items() if not all(finding.good for finding in own)}
    assert bad == {"data", "weights", "refinement"}
    texts = [finding.text for own in found.values() for finding in own if not finding.good]
    for word in (f"{tmp_path}/none", "none.pth", "gone.pth", "use engine 'faiss'"):
        assert any(word in text for text in texts), word


def test_photos_that_cannot_be_used_are_counted(tmp_path):
    (tmp_path / "labels.csv").write_text("file,labels,split\na.jpg,cat,train\n../b.jpg,cat,train\nc.jpg,cat,val\n")
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"")
    settings = ["dataset.layout=folder", f"dataset.root={tmp_path}", "dataset.train_split=train"]
    (data,) = examined(*settings, "dataset.val_split=val", "dataset.limit=null")["data"]
    assert "1 training and 1 val photos" in data.text and "1 cannot be used" in data.text


def test_a_library_that_is_missing(tiny, monkeypatch):
    """Without FAISS a run that needs it is told so; one that does not need it can go on."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "faiss" else sys.modules.get(name))
    for engine, good in (("auto", True), ("faiss", False)):
        (found,) = examined(*tiny, f"refinement.engine={engine}")["faiss"]
        assert found.good is good and "pip install" in found.text


@pytest.mark.parametrize(("wish", "good"), [("auto", True), ("false", True), ("true", False)])
def test_a_gpu_that_is_missing(tiny, monkeypatch, wish, good):
    monkeypatch.setattr(doctor.torch.cuda, "device_count", lambda: 0)
    (found,) = examined(*tiny, f"runtime.use_gpu={wish}")["gpu"]
    assert found.good is good and found.text == "none: it runs on the CPU, slower"


def test_a_stage_of_ones_own_says_what_it_needs(tiny, tmp_path, monkeypatch):
    (tmp_path / "own_needs.py").write_text(
        "from wsseg_ray.engine.stage import Finding, Stage\n"
        "STAGE = Stage('mine', ('images',), 'mine', after='images',\n"
        "    check=lambda recipe, listing: [Finding('licence', False, f'{len(listing.photos)} photos need one')])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = examined(*tiny, "extra_stages=[own_needs:STAGE]")["licence"]
    assert found.text == "24 photos need one"


def test_classes_with_few_photos_and_photos_in_both_splits_are_told(tmp_path):
    """A copy of another size and quality is seen; another photo is not taken for it."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    noise.save(tmp_path / "a.jpg", quality=95)
    noise.resize((400, 300)).save(tmp_path / "b.jpg", quality=60)
    noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "c.jpg")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "labels.csv").write_text("file,labels,split\na.jpg,cat,train\nb.jpg,cat,val\nc.jpg,cat,val\n")
    found = examined("dataset.layout=folder", f"dataset.root={tmp_path}", "dataset.train_split=train")
    ((classes,), (alike,)) = found["classes"], found["alike"]
    assert (
        not classes.good
        and "cat 1, dog 0; a class with under 20 photos is hardly learned: add photos of cat" in classes.text
    )
    assert "no training photo at all: dog" in classes.text
    assert not alike.good and alike.text.startswith("1 val photos look like a training photo, first b and a:")
