import io

import pytest
import torch
import torchvision
from torch import nn

from wsseg_ray.errors import WeightsError
from wsseg_ray.hcp.trunk import load_weights
from wsseg_ray.recipe import MODELS, TORCHVISION
from wsseg_ray.segmentation.deeplab import parameter_groups
from wsseg_ray.segmentation.models import create, freeze, grid_size


def saved(state: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_every_segmentation_network_of_torchvision_is_there():
    assert set(TORCHVISION) == set(torchvision.models.list_models(module=torchvision.models.segmentation))


@pytest.mark.parametrize("model", MODELS)
def test_every_network_keeps_the_contract(model):
    with torch.device("meta"):
        network = create(model, 5).eval()
        for size in ((321, 321), (97, 130)):
            logits = network(torch.empty(2, 3, *size))
            assert logits.shape == (2, 5, *(grid_size(model, side) for side in size))
        assert network.head(network.features(torch.empty(1, 3, 65, 65))).shape[2:] == (grid_size(model, 65),) * 2
    assert -(-321 // network.stride) == grid_size(model, 321)
    assert parameter_groups(network, 0.1, [])[2]["params"]  # the last layer learns fast


@pytest.mark.parametrize("model", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_a_batch_may_be_dealt_out(model):
    """In training too a photo's logits do not depend on its batch: BatchNorm keeps its statistics."""
    torch.manual_seed(0)
    network = create(model, 3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    photos = torch.rand(3, 3, 65, 65)
    for layer in network.modules():
        if hasattr(layer, "numbers"):
            layer.p = 0.0
    torch.testing.assert_close(network(photos)[1:2], network(photos[1:2]), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_torchvisions_files_fit(tmp_path):
    torch.manual_seed(0)
    network, classifier = create("fcn_resnet50", 3), torchvision.models.resnet50(weights=None)
    loaded, fresh = load_weights(network, saved(classifier.state_dict()))
    assert torch.equal(network.trunk["layer4"][2].conv3.weight, classifier.layer4[2].conv3.weight)
    assert len(loaded) == sum(name.startswith("trunk.") for name in network.state_dict())
    assert all(name.startswith("classifier.") for name in fresh)
    whole = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)
    load_weights(network, saved(whole.state_dict()))
    assert torch.equal(network.trunk["conv1"].weight, whole.backbone["conv1"].weight)
    old = {name: value for name, value in classifier.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_weights(network, saved(old))
    with pytest.raises(WeightsError, match="lacks"):
        load_weights(network, saved(torchvision.models.mobilenet_v3_small(weights=None).state_dict()))
    mobile = create("lraspp_mobilenet_v3_large", 3)
    load_weights(mobile, saved(torchvision.models.mobilenet_v3_large(weights=None).state_dict()))


def test_imagenet_asks_torchvision_for_the_right_classifier(monkeypatch):
    asked = []

    def weights(model):
        asked.append(model)
        raise KeyError("no download in a test")

    monkeypatch.setattr("torchvision.models.get_model_weights", weights)
    for model in ("deeplabv3_resnet101", "lraspp_mobilenet_v3_large", "deeplab_small"):
        with pytest.raises(KeyError):
            load_weights(create(model, 2), "imagenet")
    assert asked == ["resnet101", "mobilenet_v3_large", "vgg16"]


def test_freezing():
    network = create("lraspp_mobilenet_v3_large", 2)
    freeze(network, "all")
    assert not any(parameter.requires_grad for parameter in network.trunk.parameters())
    assert all(parameter.requires_grad for parameter in network.classifier.parameters())
    with pytest.raises(ValueError, match="none or all"):
        freeze(network, 3)
    small = create("deeplab_small", 2)
    freeze(small, 2)
    convs = [layer for layer in small.trunk if isinstance(layer, nn.Conv2d)]
    assert [conv.weight.requires_grad for conv in convs] == [False, False, True, True, True]
