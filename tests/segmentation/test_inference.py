import numpy as np
import pytest
import torch
from torch import nn

from wsseg_ray.segmentation.inference import (
    HALO,
    TILE,
    View,
    at_pixels,
    fill_cells,
    photo_views,
    tiled_logits,
    upsample,
)
from wsseg_ray.segmentation.network import SegmentationNetwork
from wsseg_ray.segmentation.targets import soft_target

SIZES = [(33, 65), (40, 57), (10, 7), (1, 4), (5, 5)]  # stride k + 1 or not


class Compass(nn.Module):
    """Each cell says where it lies: row and column of its pixel."""

    stride, centred = 4, True

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        rows, columns = (torch.arange(0, side, self.stride).float() for side in photos.shape[2:])
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


@pytest.fixture(scope="module")
def small() -> SegmentationNetwork:
    torch.manual_seed(0)
    return SegmentationNetwork("small", "largefov", 3).eval()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_each_pixel_is_read_off_where_it_lies_among_the_cells(height, width):
    (views,) = photo_views([Compass()], torch.zeros(1, 3, height, width))
    rows, columns = at_pixels(views, height, width)
    assert torch.equal(rows, torch.arange(height)[:, None].float().expand(height, width))
    assert torch.equal(columns, torch.arange(width).float().expand(height, width))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_mirrored_view_is_read_off_at_the_mirrored_pixel(height, width):
    (views,) = photo_views([Compass()], torch.zeros(1, 3, height, width), mirror=True)
    assert [view.mirrored for view in views] == [False, True]
    columns = at_pixels(views[1:], height, width)[1]
    assert torch.equal(columns, torch.arange(width - 1, -1, -1).float().expand(height, width))


def test_a_scaled_view_is_read_off_at_the_scaled_pixel():
    (views,) = photo_views([Compass()], torch.zeros(1, 3, 10, 6), scales=[2])
    rows, columns = at_pixels(views, 10, 6)
    assert rows[:, 0].tolist() == [2 * y + 0.5 for y in range(10)]  # pixel y is pixels 2y and 2y + 1 of the view
    assert columns[0].tolist() == [2 * x + 0.5 for x in range(6)]


def test_a_smaller_copy_of_the_photo_is_read_off_at_its_own_pixels():
    (views,) = photo_views([Compass()], torch.zeros(1, 3, 12, 8))
    assert at_pixels(views, 6, 4)[0][:, 0].tolist() == [2 * y + 0.5 for y in range(6)]


def test_a_photo_of_whole_cells_is_upsampled_with_its_corners_aligned(small):
    photo = torch.rand(1, 3, 33, 65)
    with torch.no_grad():
        expected = upsample(small(photo), 33, 65)[0]
    torch.testing.assert_close(at_pixels(photo_views([small], photo)[0], 33, 65), expected, rtol=1e-4, atol=1e-5)


def test_any_other_photo_is_filled_up_with_the_mean_and_cut(small):
    photo = torch.rand(1, 3, 30, 62)
    filled = fill_cells(photo, 4)
    assert filled.shape == (1, 3, 33, 65) and torch.equal(filled[..., :30, :62], photo)
    assert not filled[..., 30:, :].any() and not filled[..., 62:].any()
    with torch.no_grad():
        expected = upsample(small(filled), 33, 65)[0, :, :30, :62]
    torch.testing.assert_close(at_pixels(photo_views([small], photo)[0], 30, 62), expected, rtol=1e-4, atol=1e-5)


def test_views_are_averaged(small):
    photo = torch.rand(1, 3, 30, 57)
    views = photo_views([small], photo, [1, 0.5], mirror=True)[0]
    assert [(view.size, view.mirrored) for view in views] == [
        ((30, 57), False),
        ((30, 57), True),
        ((15, 28), False),
        ((15, 28), True),
    ]
    alone = torch.stack([at_pixels([view], 30, 57) for view in views])
    torch.testing.assert_close(at_pixels(views, 30, 57), alone.mean(dim=0))


@pytest.mark.parametrize("size", SIZES)
def test_a_mirrored_photo_gets_mirrored_logits(small, size):
    photo = torch.rand(1, 3, *size)
    answer, mirrored = (at_pixels(photo_views([small], view, mirror=True)[0], *size) for view in (photo, photo.flip(3)))
    torch.testing.assert_close(mirrored.flip(2), answer, rtol=1e-4, atol=1e-5)


def test_networks_see_the_same_tensor_in_turn(small):
    seen = []
    networks = [Compass(), Compass()]
    for network in networks:
        network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    found = photo_views(networks, torch.zeros(1, 3, 9, 9), [1, 2])
    assert [len(views) for views in found] == [2, 2] and isinstance(found[0][0], View)
    assert seen[0] is seen[1] and seen[2] is seen[3] and seen[0] is not seen[2]


@pytest.mark.parametrize("size", [(96, 96), (97, 64), (61, 130), (193, 99), (5, 65), (65, 65)])
def test_tiles_are_the_whole(size):
    torch.manual_seed(0)
    network = SegmentationNetwork("small", "largefov", 3).eval()
    photo = torch.rand(1, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(tiled_logits(network, photo, tile=32, halo=40), network(photo), rtol=1e-4, atol=1e-5)


def test_the_halo_covers_what_a_cell_of_largefov_sees():
    """The gradient of a cell reaches no farther than the halo."""
    network = SegmentationNetwork("vgg16", "largefov", 2).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1e-3)
    photo = torch.rand(1, 3, 1, 481, requires_grad=True)
    network(photo)[0, 1, 0, 30].backward()  # looks around pixel 240
    seen = photo.grad[0].abs().sum(dim=(0, 1)).nonzero()[:, 0]
    assert 240 - HALO <= int(seen.min()) < 100 and 380 < int(seen.max()) <= 240 + HALO
    assert TILE % network.stride == HALO % network.stride == 0


def test_upsample_puts_cells_where_targets_take_them():
    ramp = np.arange(9)[None, :].repeat(9, axis=0)
    target = soft_target(ramp, np.ones((9, 9), bool), np.linspace(0, 1, 9)[None], [0], 1, 3, 3)
    assert target[1, 0, 1] == pytest.approx(0.5)
    maps = torch.arange(3.0).reshape(1, 1, 1, 3).expand(1, 1, 3, 3)
    assert upsample(maps, 9, 9)[0, 0, 4].tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]


class SideBySide(nn.Module):
    """Each cell says where its middle lies, in pixels of the photo that it is given; cells cover any photo."""

    stride, centred = 4, False

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        sides = [max(1, round(side / self.stride)) for side in photos.shape[2:]]
        middles = [
            (torch.arange(cells) + 0.5) * side / cells - 0.5
            for cells, side in zip(sides, photos.shape[2:], strict=True)
        ]
        return torch.stack(torch.meshgrid(*middles, indexing="ij"))[None]


@pytest.mark.parametrize(("height", "width"), [(32, 64), (41, 57), (10, 9)])
def test_cells_side_by_side_are_read_off_where_they_lie(height, width):
    (views,) = photo_views([SideBySide()], torch.zeros(1, 3, height, width), mirror=True)
    assert [view.stride for view in views] == [0, 0] and views[0].size == (height, width)
    inside = [slice(min(3, side // 2), max(side - 3, side // 2 + 1)) for side in (height, width)]  # past outer middles
    for view in views:
        rows, columns = at_pixels([view], height, width)
        wanted = torch.arange(width).float()
        wanted = wanted.flip(0) if view.mirrored else wanted
        torch.testing.assert_close(
            columns[inside[0], inside[1]], wanted[inside[1]].expand_as(columns[inside[0], inside[1]]), rtol=0, atol=1e-3
        )
        if height > 8:
            torch.testing.assert_close(rows[inside[0], 0], torch.arange(height).float()[inside[0]], rtol=0, atol=1e-3)
