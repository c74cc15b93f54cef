"""Labels of new photos: the same as the stage `predict` gives, in one process and on Ray."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runs import same_rows
from wsseg_ray.errors import DatasetError, RecipeError
from wsseg_ray.labelling import LABELS, label
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES


@pytest.fixture
def photos(tiny_local, tmp_path):
    """The val photos of the run, and its predictions of SN_B, by name."""
    run, folder = tiny_local[1], tmp_path / "photos"
    folder.mkdir()
    rows = [row for row in run.rows(IMAGES) if row.split == "val"]
    for row in rows:
        (folder / f"{row.image_id}.jpg").write_bytes(Path(row.uri).read_bytes())
    place = ("predictions", "SN_B", "results", "VOC2012", "Segmentation", "comp6_val_cls")
    return folder, {row.image_id: run.read_bytes(*place, f"{row.image_id}.png") for row in rows}


def files(folder: Path, suffix: str = ".png") -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in folder.glob(f"*{suffix}")}


def test_new_photos_get_what_the_stage_gives(tiny_local, photos, tmp_path):
    folder, expected = photos
    told = []
    outcome = label(tiny_local[1].root, str(folder), str(tmp_path / "out/deep"), "SN_B", tell=lambda *a: told.append(a))
    assert files(tmp_path / "out/deep") == expected
    assert outcome == (len(expected), {}, f"{tmp_path}/out/deep")
    assert sorted(name for name, _ in told) == sorted(expected) and any(seen for _, seen in told)


def test_what_is_labelled_is_not_labelled_again(tiny_local, photos, tmp_path, capsys):
    folder, expected = photos
    place = [tiny_local[1].root, str(folder), str(tmp_path / "out"), "SN_B"]
    label(*place)
    capsys.readouterr()
    label(*place)
    assert "label            done before" in capsys.readouterr().err
    work = RunDirectory.at(str(tmp_path / "out/.wsseg"))
    work.delete("labels")
    (tmp_path / "out" / f"{min(expected)}.png").unlink()
    label(*place)
    assert files(tmp_path / "out") == expected, "a labelling that was cut off goes on"
    (tmp_path / "out" / f"{min(expected)}.png").unlink()
    label(*place)
    assert files(tmp_path / "out") == expected, "a file that is gone is made again"
    label(*place[:3], "AN_A")
    assert files(tmp_path / "out").keys() == expected.keys() and files(tmp_path / "out") != expected
    label(*place)
    assert files(tmp_path / "out") == expected, "and back again"


def test_a_photo_that_was_changed_is_labelled_again(tiny_local, photos, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(photos[0], own)
    place = [tiny_local[1].root, str(own), str(tmp_path / "out"), "SN_B"]
    label(*place)
    first, second, *_ = sorted(own.iterdir())
    first.write_bytes(second.read_bytes())
    label(*place)
    found = files(tmp_path / "out")
    assert found[first.stem] == found[second.stem] == photos[1][second.stem] != photos[1][first.stem]


def test_one_file_for_all_photos(tiny_local, photos, tmp_path):
    folder, expected = photos
    (folder / "broken.jpg").write_bytes(b"no photo")
    outcome = label(tiny_local[1].root, str(folder), str(tmp_path / "out"), "SN_B", "coco")
    assert outcome.labelled == len(expected) and "is no image" in outcome.failed["broken"]
    assert outcome.written == f"{tmp_path}/out/labels.json"
    images = json.loads(Path(outcome.written).read_bytes())["images"]
    assert sorted(image["file_name"] for image in images) == sorted(f"{name}.jpg" for name in expected)


def test_a_photo_that_cannot_be_read_costs_no_other(tiny_local, photos, tmp_path):
    folder, expected = photos
    (folder / "broken.jpg").write_bytes(b"no photo")
    (folder / "notes.txt").write_text("not even meant")
    outcome = label(tiny_local[1].root, str(folder), str(tmp_path / "out"), "AN_A")
    assert outcome.labelled == len(expected) == len(files(tmp_path / "out")) and list(outcome.failed) == ["broken"]


def test_one_photo_of_another_size(tiny_local, tmp_path):
    Image.fromarray(np.zeros((37, 90, 3), np.uint8)).save(tmp_path / "dark.png")
    label(tiny_local[1].root, str(tmp_path / "dark.png"), str(tmp_path / "out"))
    with Image.open(tmp_path / "out" / "dark.png") as labels:
        assert labels.mode == "P" and labels.size == (90, 37)


def test_probabilities(tiny_local, photos, tmp_path):
    folder, expected = photos
    label(tiny_local[1].root, str(folder), str(tmp_path / "out"), "SN_B", "npz")
    name = min(expected)
    with np.load(tmp_path / "out" / f"{name}.npz") as found:
        assert found["probabilities"].sum(axis=0) == pytest.approx(1, abs=0.01) and found["classes"][0] == "background"


def test_mistakes_are_named(tiny_local, tmp_path):
    run, folder, out = tiny_local[1].root, tmp_path / "photos", str(tmp_path / "out")
    folder.mkdir()
    with pytest.raises(DatasetError, match="no such photo"):
        label(run, str(tmp_path / "nowhere"), out)
    with pytest.raises(DatasetError, match="holds no photo"):
        label(run, str(folder), out)
    for name in ("a.jpg", "a.png"):
        (folder / name).touch()
    with pytest.raises(DatasetError, match="more than one photo is called a"):
        label(run, str(folder), out)
    with pytest.raises(RecipeError, match="no form of labels 'tiff'; there are png, overlay, coco, coco_polygons, npz"):
        label(run, str(folder), out, form="tiff")
    with pytest.raises(RecipeError, match=r"runtime\.engine"):
        label(run, str(folder / "a.jpg"), out, engine="dask")
    assert not (tmp_path / "out").exists()


@pytest.mark.run
def test_it_needs_no_ray(tiny_local, photos, tmp_path):
    """In a process where Ray cannot be imported."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from wsseg_ray.labelling import label\n"
        "label(*sys.argv[1:], 'SN_B', engine='local')"
    )
    folder, expected = photos
    subprocess.run([sys.executable, "-c", code, tiny_local[1].root, folder, tmp_path / "out"], check=True)
    assert files(tmp_path / "out") == expected


def test_on_ray(tiny_local, photos, tmp_path, cluster):
    folder, expected = photos
    (folder / "broken.jpg").write_bytes(b"no photo")
    for engine in ("local", "ray"):
        outcome = label(tiny_local[1].root, str(folder), str(tmp_path / engine), "SN_B", engine=engine)
        assert outcome.labelled == len(expected) and list(outcome.failed) == ["broken"]
    assert files(tmp_path / "ray") == files(tmp_path / "local") == expected
    runs = [RunDirectory.at(str(tmp_path / engine / ".wsseg")).now() for engine in ("local", "ray")]
    assert same_rows(*runs, LABELS)
