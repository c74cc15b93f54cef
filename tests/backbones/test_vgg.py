import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.vgg import VGG, _normalised_together, conv_layers


def small(dense: bool = False) -> VGG:
    return BACKBONES.get("small").build(dense)


def test_vgg16_has_torchvisions_names_and_shapes():
    with torch.device("meta"):
        ours, theirs = BACKBONES.get("vgg16").build(False).state_dict(), vgg16().features.state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }


def test_cells_are_dilated_where_they_would_grow_too_large():
    layers = conv_layers([8, "pool", 8, "pool", 8, "pool", 8], dense_stride=2)
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [(conv.dilation[0], conv.padding[0]) for conv in convs] == [(1, 1), (1, 1), (2, 2), (4, 4)]
    pools = [layer for layer in layers if isinstance(layer, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools] == [(3, 2, 1), (3, 1, 1), (3, 1, 1)]
    assert layers(torch.rand(1, 3, 9, 12))["out"].shape == (1, 8, 5, 6)


@pytest.mark.parametrize("name", ["small", "vgg16"])
def test_regions_and_cells_get_the_same_first_weights(name):
    first = []
    for dense in (False, True):
        torch.manual_seed(0)
        first.append(BACKBONES.get(name).build(dense).state_dict())
    assert first[0].keys() == first[1].keys()
    assert all(torch.equal(tensor, first[1][key]) for key, tensor in first[0].items())


def test_freeze_stops_the_first_conv_layers_and_their_batch_norm():
    backbone = small().train()
    backbone.freeze(2)
    convs = [layer for layer in backbone if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in backbone if isinstance(layer, nn.BatchNorm2d)]
    expected = [False, False, True, True, True]
    assert [conv.weight.requires_grad for conv in convs] == expected
    assert [norm.training for norm in norms] == expected
    backbone.eval().train()
    assert [norm.training for norm in norms] == expected
    before = norms[0].running_mean.clone()
    backbone(torch.rand(2, 3, 8, 8))
    assert torch.equal(norms[0].running_mean, before)
    assert not torch.equal(norms[2].running_mean, torch.zeros(96))


def test_freeze_none_and_all():
    backbone = small()
    backbone.freeze("all")
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    backbone.freeze("none")
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    with pytest.raises(ValueError, match="6 conv layers of 5"):
        backbone.freeze(6)


def test_photos_of_unlike_sizes_pass_as_each_would_alone():
    backbone = small().eval()
    for norm in backbone:
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)  # so that a filled-up border would not stay zero
    photos = [torch.randn(3, *size) for size in ((16, 20), (20, 16), (16, 20), (9, 33))]
    for photo, found in zip(photos, backbone.maps_of(photos), strict=True):
        torch.testing.assert_close(found, backbone(photo[None])["out"][0], rtol=1e-4, atol=1e-5)


def test_batch_norm_takes_its_statistics_from_all_sizes():
    torch.manual_seed(0)
    alike, apart = small().train(), small().train()
    apart.load_state_dict(alike.state_dict())
    photos = torch.randn(4, 3, 16, 20)
    torch.testing.assert_close(torch.stack(apart.maps_of(list(photos))), alike(photos)["out"], rtol=1e-4, atol=1e-5)
    wide = torch.randn(3, 8, 12)
    norm, maps = nn.BatchNorm2d(3), [photos[:1], wide[None]]
    pixels = torch.cat([photos[0].flatten(1), wide.flatten(1)], dim=1)
    mean, std = pixels.mean(dim=1, keepdim=True), (pixels.var(dim=1, correction=0, keepdim=True) + norm.eps).sqrt()
    for part, own in zip(_normalised_together(norm, maps), maps, strict=True):
        torch.testing.assert_close(part[0].flatten(1), (own[0].flatten(1) - mean) / std, rtol=1e-4, atol=1e-5)
