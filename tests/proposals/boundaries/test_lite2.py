import numpy as np
import pytest
import torch
from torch import nn

from wsseg_ray.proposals.boundaries.hypercolumn import find, load
from wsseg_ray.proposals.boundaries.lite2 import LITE2, levels


@pytest.fixture(scope="module")
def backbone():
    """EfficientNet-Lite2 with its weights, from the installed package."""
    return load(LITE2, "packaged")


@pytest.mark.parametrize("size", [(96, 64), (75, 100), (8, 8)])
def test_corner_cells_are_those_of_one_canvas(backbone, size):
    """Sizes of the levels: 32 k + 1 pixels halved again and again, one cell more than the steps between cells."""
    with torch.inference_mode():
        maps = levels(backbone, torch.zeros(1, 3, *size))
    steps = [max(1, round(2 * side / 32)) for side in size]
    assert [tuple(own.shape[2:]) for own in maps] == [
        tuple(step * 32 // stride + 1 for step in steps) for stride in (2, 4, 8, 16, 32)
    ]


def test_corner_cells_lie_on_corner_pixels():
    """With convolutions that are symmetric, a mirrored photo has mirrored levels: no cell lies off to one side."""
    symmetric = load(LITE2, "packaged")
    for layer in symmetric.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = (layer.weight + layer.weight.flip(2, 3)) / 2
    photo = torch.randn(1, 3, 75, 100, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for one, other in zip(levels(symmetric, photo), levels(symmetric, photo.flip(2, 3)), strict=True):
            torch.testing.assert_close(one.flip(2, 3), other, atol=2e-3, rtol=1e-3)


def test_it_finds_the_boundary_of_a_disc(backbone):
    rows, columns = np.indices((120, 160))
    radius = np.hypot(rows - 60, columns - 80)
    photo = np.where(radius[..., None] < 35, (200, 120, 40), (60, 90, 160)).astype(np.uint8)
    strength, _ = find(LITE2, backbone, photo)
    on, off = strength[np.abs(radius - 35) < 1.5], strength[np.abs(radius - 35) > 8]
    assert on.mean() > 0.3 and on.mean() > 10 * off.mean()
