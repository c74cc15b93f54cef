"""Trained networks without Ray: programs that say what the network says."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wsseg_ray import networks
from wsseg_ray.datasets.demo import CLASSES
from wsseg_ray.errors import RecipeError
from wsseg_ray.segmentation.network import SegmentationNetwork
from wsseg_ray.tables import IMAGES

SIZES = [(1, 97, 64), (3, 50, 81)]


def test_without_a_name_the_best_on_val_is_taken(tiny_local):
    run = tiny_local[1]
    vals = {name: own["val"]["miou_crf"] for name, own in run.read_json("metrics.json")["networks"].items()}
    assert vals[networks.open_network(run.root).about.name] == max(vals.values()) and len(vals) > 1


def test_mistakes_are_named(tiny_local, tmp_path):
    run = tiny_local[1].root
    with pytest.raises(RecipeError, match=r"no network 'SN_C'; it has AN_A, .*SN_B"):
        networks.open_network(run, "SN_C")
    with pytest.raises(RecipeError, match="is no run"):
        networks.open_network(str(tmp_path), "SN_B")
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


def test_probabilities_are_those_before_the_crf(tiny_local):
    trained = networks.open_network(tiny_local[1].root, "SN_B")
    file = Path(next(row.uri for row in tiny_local[1].rows(IMAGES) if row.split == "val"))
    found = networks.photo_probabilities(trained, file.read_bytes())
    assert len(found) == len(CLASSES) + 1 and found.sum(axis=0) == pytest.approx(1, abs=1e-5)
    plain = trained.recipe.crf.model_copy(update={"enabled": False})
    without = trained._replace(recipe=trained.recipe.model_copy(update={"crf": plain}))
    assert (networks.predict_photo(without, file.read_bytes()) == found.argmax(axis=0)).all()


def test_onnx_says_what_it_needs(tiny_local, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(RecipeError, match="onnxscript"):
        networks.export(tiny_local[1].root, "SN_B", "onnx", tmp_path / "net.onnx")
