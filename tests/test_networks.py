"""Trained networks without Ray: the same labels as the stage `predict`, and programs that say what the network says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsseg_ray import networks
from wsseg_ray.datasets.demo import CLASSES
from wsseg_ray.errors import DatasetError, RecipeError
from wsseg_ray.segmentation.network import SegmentationNetwork
from wsseg_ray.tables import IMAGES

SIZES = [(1, 97, 64), (3, 50, 81)]


@pytest.fixture
def photos(tiny_local, tmp_path):
    """The val photos of the run, and its predictions of SN_B, by name."""
    run = tiny_local[1]
    rows = [row for row in run.rows(IMAGES) if row.split == "val"]
    for row in rows:
        (tmp_path / f"{row.image_id}.jpg").write_bytes(Path(row.uri).read_bytes())
    folder = ("predictions", "SN_B", "results", "VOC2012", "Segmentation", "comp6_val_cls")
    return tmp_path, {row.image_id: run.read_bytes(*folder, f"{row.image_id}.png") for row in rows}


def test_new_photos_get_what_the_stage_gives(tiny_local, photos, tmp_path):
    folder, expected = photos
    told = []
    assert networks.predict(tiny_local[1].root, folder, tmp_path / "out" / "deep", told.append, "SN_B") == 0
    found = {file.stem: file.read_bytes() for file in (tmp_path / "out" / "deep").iterdir()}
    assert found == expected and len(told) == len(expected)


def test_without_a_name_the_best_on_val_is_taken(tiny_local):
    run = tiny_local[1]
    vals = {name: own["val"]["miou_crf"] for name, own in run.read_json("metrics.json")["networks"].items()}
    assert vals[networks.open_network(run.root).about.name] == max(vals.values()) and len(vals) > 1


def test_one_file_for_all_photos(tiny_local, photos, tmp_path):
    folder, expected = photos
    (folder / "broken.jpg").write_bytes(b"no photo")
    told = []
    assert networks.predict(tiny_local[1].root, folder, tmp_path / "out", told.append, "SN_B", "coco") == 1
    (file,) = (tmp_path / "out").iterdir()
    images = json.loads(file.read_bytes())["images"]
    assert [image["file_name"] for image in images] == sorted(f"{name}.jpg" for name in expected)
    assert told[-1] == f"{file}: {len(expected)} photos"


def test_a_photo_that_cannot_be_read_costs_no_other(tiny_local, photos, tmp_path):
    folder, expected = photos
    (folder / "broken.jpg").write_bytes(b"no photo")
    (folder / "notes.txt").write_text("not even meant")
    told = []
    assert networks.predict(tiny_local[1].root, folder, tmp_path / "out", told.append, "AN_A") == 1
    assert len(list((tmp_path / "out").iterdir())) == len(expected)
    assert "broken.jpg" in told[0] and len(told) == len(expected) + 1


def test_one_photo_of_another_size(tiny_local, tmp_path):
    Image.fromarray(np.zeros((37, 90, 3), np.uint8)).save(tmp_path / "dark.png")
    networks.predict(tiny_local[1].root, tmp_path / "dark.png", tmp_path / "out", print)
    with Image.open(tmp_path / "out" / "dark.png") as labels:
        assert labels.mode == "P" and labels.size == (90, 37)


def test_mistakes_are_named(tiny_local, tmp_path):
    run = tiny_local[1].root
    with pytest.raises(RecipeError, match=r"no network 'SN_C'; it has AN_A, .*SN_B"):
        networks.open_network(run, "SN_C")
    with pytest.raises(RecipeError, match="is no run"):
        networks.open_network(str(tmp_path), "SN_B")
    with pytest.raises(DatasetError, match="no such photo"):
        networks.predict(run, tmp_path / "nowhere", tmp_path / "out", print)
    with pytest.raises(DatasetError, match="holds no photo"):
        networks.predict(run, tmp_path, tmp_path / "out", print)
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).touch()
    with pytest.raises(DatasetError, match="more than one photo is called a"):
        networks.predict(run, tmp_path, tmp_path / "out", print)
    with pytest.raises(RecipeError, match="no form of labels 'tiff'; there are png, overlay, coco, coco_polygons, npz"):
        networks.predict(run, tmp_path, tmp_path / "out", print, form="tiff")
    with pytest.raises(RecipeError, match="torchscript"):
        networks.export(run, "SN_B", "caffe", tmp_path / "net")


def test_a_state_dict_is_all_one_needs(tiny_local, tmp_path):
    networks.export(tiny_local[1].root, "SN_B", "state_dict", tmp_path / "net.pt")
    kept = torch.load(tmp_path / "net.pt", weights_only=True)
    assert kept["classes"] == list(CLASSES)
    again = SegmentationNetwork(kept["backbone"], kept["head"], len(kept["classes"]) + 1).eval()
    again.load_state_dict(kept["state_dict"])
    network = networks.open_network(tiny_local[1].root, "SN_B").network
    photo = torch.rand(1, 3, 40, 50)
    assert torch.equal(again(photo), network(photo))


def segmenter(run: str) -> networks.ExportedNetwork:
    return networks.ExportedNetwork(networks.open_network(run, "SN_B").network).eval()


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_torchscript_takes_photos_of_any_size(tiny_local, tmp_path):
    networks.export(tiny_local[1].root, "SN_B", "torchscript", tmp_path / "net.ts")
    program, own = torch.jit.load(tmp_path / "net.ts"), segmenter(tiny_local[1].root)
    for batch, height, width in SIZES:
        photos = torch.rand(batch, 3, height, width)
        found = program(photos)
        assert found.shape == (batch, len(CLASSES) + 1, height, width)
        torch.testing.assert_close(found, own(photos))


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_onnx_takes_photos_of_any_size(tiny_local, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    networks.export(tiny_local[1].root, "SN_B", "onnx", tmp_path / "net.onnx")
    session, own = onnxruntime.InferenceSession(tmp_path / "net.onnx"), segmenter(tiny_local[1].root)
    for batch, height, width in SIZES:
        photos = torch.rand(batch, 3, height, width)
        (found,) = session.run(None, {"photos": photos.numpy()})
        np.testing.assert_allclose(found, own(photos).numpy(), atol=1e-5)
    kept = session.get_modelmeta().custom_metadata_map
    assert json.loads(kept["classes"]) == ["background", *CLASSES]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["torchscript", "onnx"])
@torch.no_grad()
def test_a_backbone_of_timm_is_a_program_for_photos_of_one_size(tmp_path, form):
    """The size has no whole cells, so the program resizes the photo, and its labels have the photo's size."""
    if form == "onnx":
        pytest.importorskip("onnxscript")
        onnxruntime = pytest.importorskip("onnxruntime")
    network = SegmentationNetwork("timm:test_efficientnet", "linear", 3).eval()
    networks.program(network, form, tmp_path / "net", (70, 90), ["cat", "dog"])
    photos = torch.rand(3, 3, 70, 90)
    if form == "onnx":
        (found,) = onnxruntime.InferenceSession(tmp_path / "net").run(None, {"photos": photos.numpy()})
    else:
        found = torch.jit.load(tmp_path / "net")(photos).numpy()
    assert found.shape == (3, 3, 70, 90)
    np.testing.assert_allclose(found, networks.ExportedNetwork(network).eval()(photos).numpy(), atol=1e-5)


def test_probabilities_are_those_before_the_crf(tiny_local, photos):
    trained = networks.open_network(tiny_local[1].root, "SN_B")
    file = min(photos[0].iterdir())
    found = networks.photo_probabilities(trained, file.read_bytes())
    assert len(found) == len(CLASSES) + 1 and found.sum(axis=0) == pytest.approx(1, abs=1e-5)
    plain = trained.recipe.crf.model_copy(update={"enabled": False})
    without = trained._replace(recipe=trained.recipe.model_copy(update={"crf": plain}))
    assert (networks.predict_photo(without, file.read_bytes()) == found.argmax(axis=0)).all()


def test_onnx_says_what_it_needs(tiny_local, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(RecipeError, match="onnxscript"):
        networks.export(tiny_local[1].root, "SN_B", "onnx", tmp_path / "net.onnx")


@pytest.mark.run
def test_prediction_needs_no_ray(tiny_local, photos, tmp_path):
    """In a process where Ray cannot be imported."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from pathlib import Path\n"
        "from wsseg_ray import networks\n"
        "networks.predict(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), print, 'SN_B')"
    )
    folder, expected = photos
    subprocess.run([sys.executable, "-c", code, tiny_local[1].root, folder, tmp_path / "out"], check=True)
    assert {file.stem: file.read_bytes() for file in (tmp_path / "out").iterdir()} == expected
