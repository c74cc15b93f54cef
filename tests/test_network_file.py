"""A network as one file: it says and sees the same as in its run, and tells who made it and how."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

import wsseg_ray
from wsseg_ray import network_file, networks
from wsseg_ray.datasets.demo import CLASSES
from wsseg_ray.errors import RecipeError


@pytest.fixture(scope="module")
def file(tiny_local, tmp_path_factory):
    place = tmp_path_factory.mktemp("file") / "net.safetensors"
    networks.export(tiny_local[1].root, "SN_B", "safetensors", place)
    return place


def test_a_file_is_the_network_of_the_run(tiny_local, file):
    ours, its = networks.open_network(tiny_local[1].root, "SN_B"), networks.open_network(str(file))
    assert its.classes == list(CLASSES) and its.about.name == "SN_B"
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    loaded = wsseg_ray.load(file)
    assert (loaded.predict(photo) == wsseg_ray.load(tiny_local[1].root, "SN_B").predict(photo)).all()
    with torch.no_grad():
        assert torch.equal(its.network(torch.ones(1, 3, 40, 50)), ours.network(torch.ones(1, 3, 40, 50)))
    assert (loaded.name, loaded.classes) == ("SN_B", list(CLASSES))


def test_the_card_says_what_the_network_is(tiny_local, file):
    text = file.with_suffix(".md").read_text()
    with safetensors.safe_open(file, "pt") as opened:
        assert opened.metadata()["card"] == text
    val = tiny_local[1].read_json("metrics.json")["networks"]["SN_B"]["val"]
    assert f"| mean | {val['miou']:.1f} | {val['miou_crf']:.1f} |" in text
    assert f"0 background, 1 {CLASSES[0]}, 2 {CLASSES[1]}" in text
    assert "from the names of what is in each photo alone" in text and "Training photos: 12; val photos: 12" in text
    assert "Licence of the backbone's weights: " in text


def test_a_file_does_not_say_where_the_photos_lay(tiny, file):
    root = next(word for word in tiny if word.startswith("dataset.root=")).removeprefix("dataset.root=")
    assert root.encode() not in file.read_bytes()


def test_a_network_of_true_masks_says_so(tiny_local):
    trained = networks.open_network(tiny_local[1].root, "FULL")
    text = network_file.card(trained, {})
    assert "from its photos' true masks" in text and "Training photos: not known" in text and "## Results" not in text


@pytest.mark.parametrize(
    ("backbone", "weights", "licence"),
    [
        ("timm:tf_efficientnet_lite2", "auto", "Apache-2.0"),
        ("vgg16", "imagenet", "BSD-3-Clause"),
        ("vgg16", "/a/b/own.pth", "that of the file own.pth"),
        ("vgg16", "random", "none: they started at random"),
    ],
)
def test_licences_of_weights(tiny_local, backbone, weights, licence):
    trained = networks.open_network(tiny_local[1].root, "SN_B")
    settings = trained.recipe.segmentation.model_copy(update={"backbone": backbone, "weights": weights})
    recipe = trained.recipe.model_copy(update={"segmentation": settings})
    assert f"weights: {licence}" in network_file.card(trained._replace(recipe=recipe), {})


def test_what_is_no_file_of_a_network(file, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "less.safetensors", metadata)
    for name, message in {
        "broken": "is no file of a network",
        "other": "holds tensors, but no network",
        "less": "is no file of a network: .*Missing key",
        "none": "is no file of a network: .*No such file",
    }.items():
        with pytest.raises(RecipeError, match=f"(?s){name}.safetensors: {message}"):
            networks.open_network(str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(RecipeError, match="has no network 'AN_B'; it has SN_B"):
        networks.open_network(str(file), "AN_B")
    assert json.loads(metadata["classes"]) == list(CLASSES)
