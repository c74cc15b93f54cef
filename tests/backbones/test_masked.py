"""Photos of unlike sizes on one canvas: each has the maps that it has alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.masked import canvas_pixels, each_alone, may_share_a_canvas, neighbours, on_canvas

SIDES = st.integers(1, 4).map(lambda cells: 8 * cells + 1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Convolutions with biases, dilation and strides, and a pool: without masks their filling would not stay zero."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        nn.Hardswish(),
        nn.Conv2d(4, 5, 1),
        nn.Conv2d(5, 6, 3, stride=2, padding=1),
    ).eval()


def test_on_canvas():
    canvas, sizes = on_canvas([torch.ones(2, 1, 1, 3), torch.full((1, 1, 2, 1), 5.0)])
    assert canvas[:, 0].tolist() == [[[1, 1, 1], [0, 0, 0]]] * 2 + [[[5, 0, 0], [5, 0, 0]]]
    assert sizes == [(1, 3), (1, 3), (2, 1)]


def test_a_canvas_is_not_mostly_filling():
    assert canvas_pixels({(400, 300): 2, (300, 400): 1}) == 3 * 400 * 400
    assert canvas_pixels({(10, 10): 2, (100, 100): 1}) is None
    assert canvas_pixels({(5, 7): 3}) == 105


@given(st.lists(st.tuples(st.integers(1, 2), SIDES, SIDES), min_size=1, max_size=3))
@settings(max_examples=30)
def test_each_photo_has_the_maps_that_it_has_alone(network, batches):
    photos = [torch.randn(count, 3, height, width) for count, height, width in batches]
    canvas, sizes = on_canvas(photos)
    with torch.no_grad(), each_alone(neighbours(network), sizes, canvas.shape):
        maps = network(canvas)
    for own, photo in zip(maps.split([len(photo) for photo in photos]), photos, strict=True):
        alone = network(photo)
        torch.testing.assert_close(own[:, :, : alone.shape[2], : alone.shape[3]], alone, rtol=1e-5, atol=1e-5)


def test_without_masks_the_border_differs(network):
    photo = torch.randn(1, 3, 17, 17)
    canvas, _ = on_canvas([photo, torch.zeros(1, 3, 33, 33)])
    alone = network(photo)
    assert (network(canvas)[:1, :, :3, :3] - alone).abs().max() > 0.01 * alone.abs().max()


def test_the_hooks_are_gone_after_the_block(network):
    photo = torch.randn(1, 3, 17, 17)
    with pytest.raises(ZeroDivisionError), each_alone(neighbours(network), [(9, 9)], photo.shape):
        raise ZeroDivisionError
    assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_a_network_is_local_where_its_layers_look_at_neighbours_alone(network):
    def look(photos: torch.Tensor) -> list[torch.Tensor]:
        return [network(photos)]

    def whole(photos: torch.Tensor) -> list[torch.Tensor]:
        maps = network(photos)
        return [maps + maps.mean((2, 3), keepdim=True)]

    assert may_share_a_canvas(network, look)
    assert not may_share_a_canvas(network, whole)


def with_biases(name: str) -> nn.Module:
    """A backbone at random, as it would be after a training: at the start all biases of BatchNorm are zero."""
    torch.manual_seed(0)
    made = BACKBONES.get(name).build(False).eval()
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias, std=0.3)
    return made


@pytest.mark.parametrize("name", ["resnet18@2,3,4*1,0.5", "tf_efficientnet_lite0*1,1.5"])
def test_a_backbone_sees_photos_together_as_it_sees_them_apart(name):
    made = with_biases(f"timm:{name}")
    assert made.is_local
    photos = [torch.randn(2, 3, 64, 96), torch.randn(1, 3, 96, 64), torch.randn(1, 3, 80, 112)]
    with torch.no_grad():
        for together, photo in zip(made.levels_together(photos), photos, strict=True):
            for level, alone in made(photo).items():
                torch.testing.assert_close(together[level], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["efficientnet_b0", "test_vit", "convnext_atto"])
def test_attention_squeezing_and_patches_are_not_local(name):
    assert not with_biases(f"timm:{name}").is_local
