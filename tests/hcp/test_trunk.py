import io

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from wsseg_ray.errors import WeightsError
from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.hcp.trunk import _normalised_together, conv_layers, freeze, learning_rate_at, load_weights, normalise


def saved(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def small(seed: int) -> HypothesisNetwork:
    torch.manual_seed(seed)
    return HypothesisNetwork("small", classes=3, pooling="segment")


def test_vgg16_has_torchvisions_names_and_shapes():
    with torch.device("meta"):
        ours, theirs = conv_layers("vgg16").state_dict(), vgg16().features.state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }


def test_small_trunk_is_the_same_for_the_same_seed():
    first, second = small(0).state_dict(), small(0).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_normalise():
    photo = np.zeros((2, 3, 3), np.uint8)
    photo[1, 2] = (255, 128, 0)
    batch = normalise(photo)
    assert batch.shape == (1, 3, 2, 3) and batch.dtype == torch.float32
    assert torch.allclose(
        batch[0, :, 1, 2], torch.tensor([(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, -0.406 / 0.225])
    )
    assert torch.equal(normalise(np.stack([photo, photo])), torch.cat([batch, batch]))


@pytest.mark.parametrize("photo", [np.zeros((2, 3, 3)), np.zeros((2, 3), np.uint8), np.zeros((2, 3, 4), np.uint8)])
def test_normalise_refuses(photo):
    with pytest.raises(ValueError, match="uint8"):
        normalise(photo)


def test_freeze_stops_the_first_conv_layers_and_their_batch_norm():
    trunk = conv_layers("small").train()
    freeze(trunk, 2)
    convs = [layer for layer in trunk if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in trunk if isinstance(layer, nn.BatchNorm2d)]
    expected = [False, False, True, True, True]
    assert [conv.weight.requires_grad for conv in convs] == expected
    assert [norm.training for norm in norms] == expected
    trunk.eval().train()
    assert [norm.training for norm in norms] == expected
    before = norms[0].running_mean.clone()
    trunk(torch.rand(2, 3, 8, 8))
    assert torch.equal(norms[0].running_mean, before)
    assert not torch.equal(norms[2].running_mean, torch.zeros(96))


def test_photos_of_unlike_sizes_pass_as_each_would_alone():
    trunk = conv_layers("small").eval()
    for norm in trunk:
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)  # so that a filled-up border would not stay zero
    photos = [torch.randn(3, *size) for size in ((16, 20), (20, 16), (16, 20), (9, 33))]
    for photo, found in zip(photos, trunk.maps_of(photos), strict=True):
        torch.testing.assert_close(found, trunk(photo[None])[0], rtol=1e-4, atol=1e-5)


def test_batch_norm_takes_its_statistics_from_all_sizes():
    torch.manual_seed(0)
    alike, apart = conv_layers("small").train(), conv_layers("small").train()
    apart.load_state_dict(alike.state_dict())
    photos = torch.randn(4, 3, 16, 20)
    torch.testing.assert_close(torch.stack(apart.maps_of(list(photos))), alike(photos), rtol=1e-4, atol=1e-5)
    wide = torch.randn(3, 8, 12)
    norm, maps = nn.BatchNorm2d(3), [photos[:1], wide[None]]
    pixels = torch.cat([photos[0].flatten(1), wide.flatten(1)], dim=1)
    mean, std = pixels.mean(dim=1, keepdim=True), (pixels.var(dim=1, correction=0, keepdim=True) + norm.eps).sqrt()
    for part, own in zip(_normalised_together(norm, maps), maps, strict=True):
        torch.testing.assert_close(part[0].flatten(1), (own[0].flatten(1) - mean) / std, rtol=1e-4, atol=1e-5)


def test_freeze_none_and_all():
    trunk = conv_layers("small")
    freeze(trunk, "all")
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    freeze(trunk, "none")
    assert all(parameter.requires_grad for parameter in trunk.parameters())
    with pytest.raises(ValueError, match="6 conv layers of 5"):
        freeze(trunk, 6)


def test_learning_rate_at():
    assert [learning_rate_at(epoch, 1.0, 2, factor=0.5) for epoch in range(5)] == [1, 1, 0.5, 0.5, 0.25]


def test_the_trunk_of_another_network_is_loaded(tmp_path):
    source, network = small(0), small(1)
    path = tmp_path / "hcp.pt"
    path.write_bytes(saved({name: tensor.half() for name, tensor in source.state_dict().items()}))
    loaded, missing = load_weights(network, path)
    assert loaded == [name for name in source.state_dict() if name.startswith("trunk.")]
    assert missing == [f"{layer}.{kind}" for layer in ("fc6", "fc7", "classifier") for kind in ("weight", "bias")]
    weight = network.trunk[0].weight
    assert weight.dtype == torch.float32 and torch.equal(weight, source.trunk[0].weight.half().float())
    assert not torch.equal(network.fc7.weight, source.fc7.weight)


def test_conv_layers_of_torchvision_alone_fit_by_name():
    source, network = small(0), small(1)
    state = {name.replace("trunk", "features"): tensor for name, tensor in source.state_dict().items()}
    load_weights(network, saved({name: tensor for name, tensor in state.items() if name.startswith("features")}))
    assert torch.equal(network.trunk[0].weight, source.trunk[0].weight)


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
        (broken(trunk__0__weight=None), "lacks 1 of the trunk's tensors .trunk.0.weight"),
        (broken(trunk__0__weight=torch.zeros(64, 3, 3, 3)), r"trunk.0.weight has shape \(64, 3, 3, 3\)"),
        (broken(trunk__0__bias=torch.full((24,), torch.nan)), "trunk.0.bias holds values that are not finite"),
    ],
)
def test_refuses_what_are_not_the_weights(content, message, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    network = small(1)
    before = network.trunk[0].weight.clone()
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(network, path)
    assert str(path) in str(error.value)
    with pytest.raises(WeightsError, match=r"^s3://bucket/w\.pth: "):
        load_weights(network, content, name="s3://bucket/w.pth")
    assert torch.equal(network.trunk[0].weight, before)


def test_refuses_a_path_without_a_file(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(WeightsError, match="cannot be read"):
            load_weights(small(0), str(path))


def test_imagenet_without_a_network_says_the_way_out(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(WeightsError, match=r"https://.*no route to host.*`null`"):
        load_weights(small(0), "imagenet")
