import pytest
import torch
import torchvision
from torch import nn

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.torchvision import LEVELS

NAMES = [f"torchvision:{name}" for name in LEVELS]


def test_the_backbones_are_those_of_torchvisions_segmentation_networks():
    networks = torchvision.models.list_models(module=torchvision.models.segmentation)
    assert {network.split("_", 1)[1] for network in networks} == set(LEVELS)


@pytest.mark.parametrize("name", NAMES)
def test_levels_have_their_strides_and_channels(name):
    variant = BACKBONES.get(name)
    with torch.device("meta"):
        backbone = variant.build(True).eval()
        levels = backbone(torch.empty(1, 3, 321, 97))
    assert list(levels)[-1] == "out" and levels.keys() == backbone.channels.keys() == variant.dense_strides.keys()
    for level, maps in levels.items():
        stride = variant.dense_strides[level]
        assert maps.shape == (1, backbone.channels[level], -(-321 // stride), -(-97 // stride))
    assert variant.dense_stride == variant.dense_strides["out"] and list(variant.weights) == ["imagenet"]


@pytest.mark.parametrize(
    ("name", "network"), [("resnet50", "fcn_resnet50"), ("mobilenet_v3_large", "lraspp_mobilenet_v3_large")]
)
def test_layers_have_torchvisions_names(name, network):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(network, weights=None, weights_backbone=None).backbone
        ours = BACKBONES.get(f"torchvision:{name}").build(True)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_batch_norm_keeps_its_statistics():
    torch.manual_seed(0)
    backbone = BACKBONES.get("torchvision:mobilenet_v3_large").build(True).train()
    assert backbone.training and not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    photos = torch.rand(2, 3, 33, 33)
    torch.testing.assert_close(backbone(photos)["out"][1:], backbone(photos[1:])["out"], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_photos_of_unlike_sizes_pass_as_each_would_alone():
    torch.manual_seed(0)
    backbone = BACKBONES.get("torchvision:mobilenet_v3_large").build(True).eval()
    photos = [torch.rand(3, *size) for size in ((33, 40), (40, 33), (33, 40))]
    for photo, found in zip(photos, backbone.maps_of(photos), strict=True):
        torch.testing.assert_close(found, backbone(photo[None])["out"][0], rtol=1e-4, atol=1e-6)


def test_none_or_all_layers_are_frozen():
    with torch.device("meta"):
        backbone = BACKBONES.get("torchvision:mobilenet_v3_large").build(True)
    backbone.freeze("all")
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    backbone.freeze("none")
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    with pytest.raises(ValueError, match="none or all layers can be frozen, not 3"):
        backbone.freeze(3)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"'torchvision:alexnet'; of torchvision there are torchvision:resnet50, "):
        BACKBONES.get("torchvision:alexnet")
    variant = BACKBONES.get("torchvision:resnet50")
    assert variant.stride is None
    with pytest.raises(ValueError, match="'torchvision:resnet50' serves segmentation alone"):
        variant.build(False)
