import io

import pytest
import torch
from torch import nn

from wsseg_ray.backbones.weights import load_weights
from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.segmentation.grid import grid_size
from wsseg_ray.segmentation.network import SegmentationNetwork


@pytest.fixture(scope="module")
def large() -> SegmentationNetwork:
    with torch.device("meta"):
        return SegmentationNetwork("vgg16", "largefov", 21).eval()


@pytest.fixture
def small() -> SegmentationNetwork:
    torch.manual_seed(0)
    return SegmentationNetwork("small", "largefov", 4).eval()


def test_largefov_on_a_321_crop(large):
    photos = torch.empty(1, 3, 321, 321, device="meta")
    assert large.features(photos)["out"].shape == (1, 512, 41, 41)
    assert large(photos).shape == (1, 21, 41, 41)
    assert grid_size("vgg16", "largefov", 321) == 41


def test_largefov_layers_and_parameters(large):
    convs = [layer for layer in large.modules() if isinstance(layer, nn.Conv2d)]
    pools = [(layer.kernel_size, layer.stride, layer.padding) for layer in large.backbone if "Pool" in str(type(layer))]
    assert len(convs) == 13 + 3
    assert pools == [(3, 2, 1)] * 3 + [(3, 1, 1)] * 3
    assert isinstance(large.backbone[-1], nn.AvgPool2d)
    assert [conv.dilation[0] for conv in convs] == [1] * 10 + [2] * 3 + [12, 1, 1]
    # 13 conv layers, fc6 (3x3), fc7 (1x1), the classifier
    expected = 14714688 + (512 * 9 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 21
    assert sum(parameter.numel() for parameter in large.parameters()) == expected


def test_fc_layers_are_decimated(large):
    own = large.state_dict()
    with torch.device("meta"):
        shapes = torch.empty(4096, 512 * 49), torch.empty(4096), torch.empty(4096, 4096), torch.empty(4096)
    assert all(tensor.shape == own[name].shape for name, tensor in large.convert_fc(*shapes).items())
    channels, positions = torch.arange(12.0), torch.arange(49.0)
    weights = large.convert_fc(
        100 * channels[:, None] + positions, channels, 10 * channels[:, None] + channels, channels
    )
    assert weights["head.fc6.weight"][2, 0].tolist() == [[800, 803, 806], [821, 824, 827], [842, 845, 848]]
    assert weights["head.fc7.weight"][1, 2].item() == 10 * 4 + 8
    assert weights["head.fc6.bias"].tolist() == weights["head.fc7.bias"].tolist() == [0, 4, 8]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (33, 32), (97, 100), (375, 500)])
def test_any_size(large, height, width):
    with torch.device("meta"):
        small, photos = SegmentationNetwork("small", "largefov", 21).eval(), torch.empty(2, 3, height, width)
    for backbone, network in (("vgg16", large), ("small", small)):
        cells = (grid_size(backbone, "largefov", side) for side in (height, width))
        assert network(photos).shape == (2, 21, *cells)


def test_small_stride(small):
    assert small(torch.rand(1, 3, 97, 97)).shape == (1, 4, 25, 25) and grid_size("small", "largefov", 97) == 25


def test_cells_are_centred_on_every_fourth_pixel(small):
    with torch.no_grad():
        for layer in small.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight += layer.weight.flip(3)
        photo = torch.rand(1, 3, 65, 65)
        # mirrored, cell 16 - i sees around pixel 64 - 4 i what cell i saw around 4 i
        assert torch.allclose(small(photo.flip(3)), small(photo).flip(3), rtol=1e-3, atol=1e-5)
        # moved by 4 pixels, the next cell sees the same, as far as it does not see the edge
        moved = torch.cat([photo[..., :4], photo[..., :-4]], dim=3)
        before, after = small.features(photo)["out"][0, :, :, 5:11], small.features(moved)["out"][0, :, :, 6:12]
        assert torch.allclose(before, after, rtol=1e-3, atol=1e-5)


def test_the_backbone_of_the_hcp_network_is_loaded(small):
    torch.manual_seed(1)
    hcp = HypothesisNetwork("small", classes=3, pooling="segment")
    file = io.BytesIO()
    torch.save(hcp.state_dict(), file)
    loaded, missing = load_weights(small, file.getvalue())
    assert loaded == [name for name in small.state_dict() if name.startswith("backbone.")]
    assert missing == [
        f"{layer}.{kind}" for layer in ("head.fc6", "head.fc7", "head.classifier") for kind in ("weight", "bias")
    ]
    assert torch.equal(small.backbone[0].weight, hcp.backbone[0].weight)


def test_training_is_the_same_every_time():
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        network = SegmentationNetwork("small", "largefov", 2).train()
        network(torch.rand(2, 3, 17, 17)).square().mean().backward()
        answers.append(network.backbone[0].weight.grad)
    assert torch.equal(*answers)
