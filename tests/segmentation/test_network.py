import io

import pytest
import torch
import torchvision
from torch import nn

from wsseg_ray.backbones.weights import load_weights
from wsseg_ray.errors import WeightsError
from wsseg_ray.hcp.dropout import PhotoDropout
from wsseg_ray.segmentation.grid import cell_stride, grid_size, whole_crop
from wsseg_ray.segmentation.heads import HEADS
from wsseg_ray.segmentation.network import SegmentationNetwork, parameter_groups

RESNET50, MOBILENET = "torchvision:resnet50", "torchvision:mobilenet_v3_large"
PAIRS = [
    ("vgg16", "largefov", 8),
    ("small", "largefov", 4),
    ("small", "fcn", 4),
    ("vgg16", "deeplabv3", 8),
    (RESNET50, "deeplabv3", 8),
    ("torchvision:resnet101", "fcn", 8),
    (RESNET50, "largefov", 8),
    (MOBILENET, "deeplabv3", 16),
    (MOBILENET, "lraspp", 8),
]


def saved(state: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.mark.parametrize(("backbone", "head", "stride"), PAIRS)
def test_any_backbone_with_any_head_keeps_the_contract(backbone, head, stride):
    with torch.device("meta"):
        network = SegmentationNetwork(backbone, head, 5).eval()
        for size in ((321, 321), (97, 130)):
            logits = network(torch.empty(2, 3, *size))
            assert logits.shape == (2, 5, *(grid_size(backbone, head, side) for side in size))
        levels = network.features(torch.empty(1, 3, 65, 65))
        assert tuple(levels) == HEADS.get(head).levels
        assert network.head(levels).shape[2:] == (grid_size(backbone, head, 65),) * 2
    assert network.stride == cell_stride(backbone, head) == stride
    assert (whole_crop(backbone, head, 320) - 1) % stride == 0
    assert parameter_groups(network, 0.1, [])[2]["params"]  # the last layer learns fast
    assert not any(type(layer) is nn.Dropout for layer in network.modules())


@pytest.mark.parametrize("backbone", ["vgg16", "small", RESNET50])
def test_a_backbone_without_the_level_is_refused(backbone):
    with pytest.raises(ValueError, match=f"'lraspp' needs the level 'low' of a backbone, and '{backbone}' has 'out'"):
        SegmentationNetwork(backbone, "lraspp", 2)
    with pytest.raises(ValueError, match="no segmentation head 'crf'; there are largefov, "):
        SegmentationNetwork(backbone, "crf", 2)


@pytest.mark.parametrize(
    ("network", "backbone", "head"),
    [("fcn_resnet50", RESNET50, "fcn"), ("lraspp_mobilenet_v3_large", MOBILENET, "lraspp")],
)
def test_answers_are_torchvisions(network, backbone, head):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(network, weights=None, weights_backbone=None, num_classes=3).eval()
    torch.manual_seed(0)
    ours = SegmentationNetwork(backbone, head, 3).eval()
    photos = torch.rand(1, 3, 65, 65)
    with torch.no_grad():
        features = theirs.backbone(photos)
        expected = theirs.classifier(features if head == "lraspp" else features["out"])
        assert torch.equal(ours(photos), expected)


@pytest.mark.parametrize("head", ["lraspp", "deeplabv3"])
def test_a_batch_may_be_dealt_out(head):
    """In training too a photo's logits do not depend on its batch: BatchNorm keeps its statistics."""
    torch.manual_seed(0)
    network = SegmentationNetwork(MOBILENET, head, 3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    photos = torch.rand(3, 3, 65, 65)
    for layer in network.modules():
        if isinstance(layer, PhotoDropout):
            layer.p = 0.0
    torch.testing.assert_close(network(photos)[1:2], network(photos[1:2]), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_torchvisions_files_fit():
    torch.manual_seed(0)
    network, classifier = SegmentationNetwork(RESNET50, "fcn", 3), torchvision.models.resnet50(weights=None)
    loaded, fresh = load_weights(network, saved(classifier.state_dict()))
    assert torch.equal(network.backbone["layer4"][2].conv3.weight, classifier.layer4[2].conv3.weight)
    assert len(loaded) == sum(name.startswith("backbone.") for name in network.state_dict())
    assert all(name.startswith("head.classifier.") for name in fresh)
    whole = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)
    load_weights(network, saved(whole.state_dict()))
    assert torch.equal(network.backbone["conv1"].weight, whole.backbone["conv1"].weight)
    old = {name: value for name, value in classifier.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_weights(network, saved(old))
    with pytest.raises(WeightsError, match="lacks"):
        load_weights(network, saved(torchvision.models.mobilenet_v3_small(weights=None).state_dict()))
    mobile = SegmentationNetwork(MOBILENET, "lraspp", 3)
    load_weights(mobile, saved(torchvision.models.mobilenet_v3_large(weights=None).state_dict()))


def test_imagenet_asks_torchvision_for_the_right_classifier(monkeypatch):
    asked = []

    def weights(model):
        asked.append(model)
        raise KeyError("no download in a test")

    monkeypatch.setattr("torchvision.models.get_model_weights", weights)
    for backbone, head in (("torchvision:resnet101", "fcn"), (MOBILENET, "lraspp"), ("vgg16", "largefov")):
        with torch.device("meta"):
            network = SegmentationNetwork(backbone, head, 2)
        with pytest.raises(KeyError):
            load_weights(network, "imagenet")
    assert asked == ["resnet101", "mobilenet_v3_large", "vgg16"]


def test_fc6_of_vgg16_is_left_out_where_the_head_has_no_use_for_it():
    with torch.device("meta"):
        fc = torch.empty(4096, 25088), torch.empty(4096), torch.empty(4096, 4096), torch.empty(4096)
        assert SegmentationNetwork("vgg16", "fcn", 2).convert_fc(*fc) == {}
        found = SegmentationNetwork("vgg16", "largefov", 2).convert_fc(*fc)
    assert list(found) == [f"head.{layer}.{kind}" for layer in ("fc6", "fc7") for kind in ("weight", "bias")]


def test_freezing():
    network = SegmentationNetwork(MOBILENET, "lraspp", 2)
    network.freeze("all")
    assert not any(parameter.requires_grad for parameter in network.backbone.parameters())
    assert all(parameter.requires_grad for parameter in network.head.parameters())
    with pytest.raises(ValueError, match="none or all"):
        network.freeze(3)
    small = SegmentationNetwork("small", "largefov", 2)
    small.freeze(2)
    convs = [layer for layer in small.backbone if isinstance(layer, nn.Conv2d)]
    assert [conv.weight.requires_grad for conv in convs] == [False, False, True, True, True]


def test_parameter_groups():
    torch.manual_seed(0)
    small = SegmentationNetwork("small", "largefov", 4)
    small.freeze(4)
    groups = parameter_groups(small, 0.1, ["head.fc7.weight", "head.fc7.bias"])
    names = {id(parameter): name for name, parameter in small.named_parameters()}
    assert [[names[id(parameter)] for parameter in group["params"]] for group in groups] == [
        ["backbone.14.weight", "backbone.15.weight", "head.fc6.weight"],
        ["backbone.14.bias", "backbone.15.bias", "head.fc6.bias"],
        ["head.fc7.weight", "head.classifier.weight"],
        ["head.fc7.bias", "head.classifier.bias"],
    ]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 5e-4), (0.2, 0), (1, 5e-4), (2, 0)]
    torch.optim.SGD(groups, momentum=0.9)


@pytest.mark.parametrize(("backbone", "head"), [("small", "largefov"), (MOBILENET, "lraspp")])
def test_a_network_can_be_traced(backbone, head):
    torch.manual_seed(0)
    network, photos = SegmentationNetwork(backbone, head, 3).eval(), torch.rand(2, 3, 33, 49)
    with torch.no_grad():
        traced = torch.jit.trace(network, photos)
        torch.testing.assert_close(traced(photos), network(photos), rtol=1e-4, atol=1e-5)


def test_a_network_is_compiled_in_place():
    """So the names of its tensors stay, which `torch.compile(network.head)` would change."""
    torch.manual_seed(0)
    network, photos = SegmentationNetwork("small", "largefov", 3).eval(), torch.rand(1, 3, 33, 33)
    names = list(network.state_dict())
    with torch.no_grad():
        expected = network(photos)
        network.backbone.compile(backend="eager")
        network.head.compile(backend="eager")
        torch.testing.assert_close(network(photos), expected)
    assert list(network.state_dict()) == names
