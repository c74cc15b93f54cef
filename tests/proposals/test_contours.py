import higra as hg
import numpy as np
import pytest
from scipy import ndimage

from wsseg_ray.proposals import contours


def test_lab_of_known_colours():
    rgb = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [119, 119, 119]]], np.uint8)
    expected = [[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.2], [87.73, -86.18, 83.18], [32.3, 79.19, -107.86]]
    np.testing.assert_allclose(contours.lab(rgb)[0], [*expected, [50.03, 0, 0]], atol=0.1)


def test_texture_of_a_ramp():
    ramp = np.tile(np.arange(20, dtype=np.float32), (20, 1))  # rises by 1 a pixel to the right
    expected = np.log1p([1, 0, np.sqrt(0.5), np.sqrt(0.5)])
    np.testing.assert_allclose(contours.texture(ramp)[5:-5, 5:-5], np.broadcast_to(expected, (10, 10, 4)), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_of_a_step(axis):
    height, width, step = 20, 30, 9  # so small that all windows have radius 1
    behind = (np.indices((height, width))[axis] > step).astype(np.float32)
    colours, textures = behind[..., None] * [3, 0, 4], behind[..., None] * [2, 2, 2, 2]
    grid = hg.get_4_adjacency_graph((height, width))
    strengths = contours.gradients(grid, colours.astype(np.float32), textures.astype(np.float32))
    source, target = np.array(grid.edge_list())
    place = np.stack(np.divmod(source, width))[axis]
    along = np.stack(np.divmod(target, width))[axis] > place
    profile = np.diff(ndimage.gaussian_filter1d(np.arange((height, width)[axis]) > step, 0.8, output=np.float32))
    expected = np.where(along, np.append(profile, 0)[place], 0)
    np.testing.assert_allclose(strengths[:3], np.tile(5 * expected, (3, 1)), atol=1e-5)
    np.testing.assert_allclose(strengths[3:], np.tile(4 * (along & (place == step)), (2, 1)), atol=1e-5)


@pytest.mark.parametrize("radius", [1, 2, 3, 4, 5])
def test_gradients_compare_adjacent_windows(radius, monkeypatch):
    height, width = 13, 15
    monkeypatch.setattr(contours, "DIAGONAL", np.hypot(height, width))
    monkeypatch.setattr(contours, "TEXTURE_SCALES", (radius,))
    textures = np.random.default_rng(radius).random((height, width, 4), np.float32)
    grid = hg.get_4_adjacency_graph((height, width))
    strengths = contours.gradients(grid, np.zeros((height, width, 3), np.float32), textures)
    assert (strengths[:3] == 0).all()
    compared = 0
    for source, target, strength in zip(*grid.edge_list(), strengths[3], strict=True):
        channels, (y, x) = textures, divmod(source, width)
        if target - source == width:
            channels, y, x = textures.swapaxes(0, 1), x, y
        if radius <= y < channels.shape[0] - radius and radius - 1 <= x < channels.shape[1] - radius:
            band = channels[y - radius : y + radius + 1]
            before = band[:, x - radius + 1 : x + 1].mean(axis=(0, 1))
            after = band[:, x + 1 : x + 1 + radius].mean(axis=(0, 1))
            assert strength == pytest.approx(np.linalg.norm(after - before), abs=1e-5)
            compared += 1
    assert compared
