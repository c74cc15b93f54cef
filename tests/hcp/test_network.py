import dataclasses
import io

import pytest
import torch

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.weights import load_weights
from wsseg_ray.errors import WeightsError
from wsseg_ray.hcp.network import HypothesisNetwork, parameter_groups
from wsseg_ray.hcp.pooling import POOLINGS


@pytest.mark.parametrize(
    ("pooling", "pooled", "parameters"),
    # roi and warp: torchvision's VGG-16 with 20 classes for 1000; segment: fc6 without its 7x7 grid
    [
        ("segment", (1, 512), 134342484 - 48 * 512 * 4096),
        ("context", (1, 1024), 134342484 - 47 * 512 * 4096),
        ("roi", (1, 512, 7, 7), 134342484),
        ("warp", (1, 512, 7, 7), 134342484),
    ],
)
def test_vgg16_shapes(pooling, pooled, parameters):
    with torch.device("meta"):
        network = HypothesisNetwork("vgg16", classes=20, pooling=pooling).eval()
        photos = torch.empty(1, 3, 224, 224)
        maps = network.features(photos)
        found = network.pooling.whole(network, photos if network.pooling.needs_photo else maps)
    assert maps.shape == (1, 512, 14, 14) and 224 // network.stride == 14
    assert found.shape == pooled
    embedding = network.embed(found)
    assert embedding.shape == (1, network.embedding_dims) == (1, 4096)
    assert network.classify(embedding).shape == (1, 20)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("pooling", POOLINGS.names)
def test_small_shapes(pooling):
    network = HypothesisNetwork("small", classes=5, pooling=pooling).eval()
    assert network.features(torch.rand(2, 3, 50, 43)).shape == (2, 96, 12, 10)
    pooled = torch.rand(2, network.pooling.inputs(96, 3))
    embedding = network.embed(pooled)
    assert embedding.shape == (2, network.embedding_dims) == (2, 128)
    assert (embedding >= 0).all() and torch.equal(embedding, network.embed(pooled))
    assert network.classify(embedding).shape == (2, 5)
    assert (network.stride, network.grid, network.crop, network.named_weights) == (4, 3, 96, {})


def test_a_backbone_for_segmentation_alone_is_refused():
    with pytest.raises(ValueError, match="'torchvision:resnet50' serves segmentation alone"):
        HypothesisNetwork("torchvision:resnet50", 2, "segment")


@pytest.mark.parametrize("pooling", POOLINGS.names)
def test_fc6_of_vgg16_fits_each_pooling(pooling):
    with torch.device("meta"):
        network = HypothesisNetwork("vgg16", classes=2, pooling=pooling)
        fc = torch.empty(4096, 25088), torch.empty(4096), torch.empty(4096, 4096), torch.empty(4096)
        own, converted = network.state_dict(), network.convert_fc(*fc)
    assert list(converted) == [f"head.{layer}.{kind}" for layer in ("fc6", "fc7") for kind in ("weight", "bias")]
    assert all(tensor.shape == own[name].shape for name, tensor in converted.items())


@pytest.fixture(scope="module")
def vgg16() -> HypothesisNetwork:
    with torch.device("meta"):
        network = HypothesisNetwork("vgg16", classes=2, pooling="segment")
    return network.to_empty(device="cpu")


def full_state(vgg16, fc7: tuple[int, int]) -> bytes:
    """A full VGG-16 file, small on disk: every tensor is one number, expanded."""
    half = torch.full((1,), 0.5, dtype=torch.float16)
    state = {name: half.expand(tensor.shape) for name, tensor in vgg16.backbone.state_dict(prefix="features.").items()}
    shapes = {"0.weight": (4096, 25088), "0.bias": (4096,), "3.weight": fc7, "3.bias": (4096,), "6.bias": (1000,)}
    state |= {f"classifier.{name}": torch.ones(1).expand(shape) for name, shape in shapes.items()}
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_a_full_vgg16_file_fills_all_but_the_last_layer(vgg16):
    loaded, missing = load_weights(vgg16, full_state(vgg16, fc7=(4096, 4096)))
    assert missing == ["head.classifier.weight", "head.classifier.bias"]
    assert len(loaded) == 26 + 4
    assert (
        (vgg16.backbone[28].weight == 0.5).all()
        and (vgg16.head.fc6.weight == 49).all()
        and (vgg16.head.fc7.weight == 1).all()
    )


def test_refuses_a_wrong_fc7(vgg16):
    with pytest.raises(WeightsError, match=r"classifier.3.weight has shape \(4096, 1000\)"):
        load_weights(vgg16, full_state(vgg16, fc7=(4096, 1000)), name="file")


def test_fc_layers_of_another_width_start_at_random(vgg16, monkeypatch):
    narrow = dataclasses.replace(BACKBONES.get("vgg16"), hidden=16)
    monkeypatch.setattr(BACKBONES, "get", lambda name: narrow)
    with torch.device("meta"):
        network = HypothesisNetwork("narrow", classes=2, pooling="segment")
    loaded, missing = load_weights(network.to_empty(device="cpu"), full_state(vgg16, fc7=(4096, 4096)))
    assert len(loaded) == 26 and missing[0] == "head.fc6.weight"


def test_parameter_groups():
    network = HypothesisNetwork("small", classes=2, pooling="segment")
    network.backbone.freeze(4)
    slow, fast = parameter_groups(network, 0.1, 0.3, ["head.fc7.weight"])
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    last = [f"backbone.{layer}.{kind}" for layer in (14, 15) for kind in ("weight", "bias")]
    assert [names[id(p)] for p in slow["params"]] == [*last, "head.fc6.weight", "head.fc6.bias", "head.fc7.bias"]
    expected = ["head.fc7.weight", "head.classifier.weight", "head.classifier.bias"]
    assert [names[id(p)] for p in fast["params"]] == expected
    assert (slow["lr"], fast["lr"]) == (0.1, 0.3)
    torch.optim.SGD([slow, fast], momentum=0.9)
