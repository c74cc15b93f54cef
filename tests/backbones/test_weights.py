import io

import numpy as np
import pytest
import torch

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.weights import load_weights
from wsseg_ray.errors import WeightsError
from wsseg_ray.hcp.network import HypothesisNetwork


def saved(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def small(seed: int) -> HypothesisNetwork:
    torch.manual_seed(seed)
    return HypothesisNetwork("small", classes=3, pooling="segment")


def test_a_network_is_the_same_for_the_same_seed():
    first, second = small(0).state_dict(), small(0).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_backbone_of_another_network_is_loaded(tmp_path):
    source, network = small(0), small(1)
    path = tmp_path / "hcp.pt"
    path.write_bytes(saved({name: tensor.half() for name, tensor in source.state_dict().items()}))
    loaded, missing = load_weights(network, path)
    assert loaded == [name for name in source.state_dict() if name.startswith("backbone.")]
    assert missing == [
        f"{layer}.{kind}" for layer in ("head.fc6", "head.fc7", "head.classifier") for kind in ("weight", "bias")
    ]
    weight = network.backbone[0].weight
    assert weight.dtype == torch.float32 and torch.equal(weight, source.backbone[0].weight.half().float())
    assert not torch.equal(network.head.fc7.weight, source.head.fc7.weight)


@pytest.mark.parametrize("prefix", ["features.", "trunk.", "backbone.", ""])
def test_conv_layers_alone_fit_by_name(prefix):
    source, network = small(0), small(1)
    load_weights(network, saved(source.backbone.state_dict(prefix=prefix)))
    assert torch.equal(network.backbone[0].weight, source.backbone[0].weight)


def broken(**changes: torch.Tensor | None) -> bytes:
    state = small(0).state_dict() | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return saved({name: tensor for name, tensor in state.items() if tensor is not None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a file of PyTorch weights"),
        (b"<html>not found</html>", "not a file of PyTorch weights"),
        (saved(small(0).state_dict())[:5000], "not a file of PyTorch weights"),
        (saved(np.float64), "not a file of PyTorch weights"),  # an object of a class that could run code
        (saved([1, 2]), "not list"),
        (saved({"epoch": 3}), "state dict"),
        (saved({}), "lacks"),
        (broken(backbone__0__weight=None), "lacks 1 of the backbone's tensors .backbone.0.weight"),
        (broken(backbone__0__weight=torch.zeros(64, 3, 3, 3)), r"backbone.0.weight has shape \(64, 3, 3, 3\)"),
        (broken(backbone__0__bias=torch.full((24,), torch.nan)), "backbone.0.bias holds values that are not finite"),
    ],
)
def test_refuses_what_are_not_the_weights(content, message, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    network = small(1)
    before = network.backbone[0].weight.clone()
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(network, path)
    assert str(path) in str(error.value)
    with pytest.raises(WeightsError, match=r"^s3://bucket/w\.pth: "):
        load_weights(network, content, name="s3://bucket/w.pth")
    assert torch.equal(network.backbone[0].weight, before)


def test_refuses_a_path_without_a_file(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(WeightsError, match="cannot be read"):
            load_weights(small(0), str(path))


def test_imagenet_without_a_network_says_the_way_out(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    network = small(0)
    network.named_weights = BACKBONES.get("vgg16").weights
    with pytest.raises(WeightsError, match=r"https://.*no route to host.*`null`"):
        load_weights(network, "imagenet")


def test_a_backbone_without_imagenet_weights_says_so():
    with pytest.raises(WeightsError, match="no such weights of this backbone"):
        load_weights(small(0), "imagenet")
