import numpy as np
import pytest
import torch

from wsseg_ray.backbones.photos import normalise
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


def test_a_cell_looks_at_the_pixel_on_which_it_is_centred(backbone):
    """The gradient of the middle cell of each level is centred on the middle of the photo; cells are up to 16 pixels."""
    photo = normalise(np.full((97, 97, 3), 120, np.uint8)).requires_grad_()
    for own in levels(backbone, photo):
        middle = own[0, :, own.shape[2] // 2, own.shape[3] // 2].square()
        (gradient,) = torch.autograd.grad((middle * torch.arange(1, len(middle) + 1)).sum(), photo, retain_graph=True)
        weight = gradient.abs().sum(dim=(0, 1))
        place = torch.arange(97, dtype=torch.float32)
        centre = [float((weight.sum(dim=1 - axis) * place).sum() / weight.sum()) for axis in (0, 1)]
        assert centre == pytest.approx([48, 48], abs=4)


def test_it_finds_the_boundary_of_a_disc(backbone):
    rows, columns = np.indices((120, 160))
    radius = np.hypot(rows - 60, columns - 80)
    photo = np.where(radius[..., None] < 35, (200, 120, 40), (60, 90, 160)).astype(np.uint8)
    strength, _ = find(LITE2, backbone, photo)
    on, off = strength[np.abs(radius - 35) < 1.5], strength[np.abs(radius - 35) > 8]
    assert on.mean() > 0.3 and on.mean() > 10 * off.mean()
