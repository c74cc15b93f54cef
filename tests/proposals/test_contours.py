import io
from itertools import pairwise

import higra as hg
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional

from wsseg_ray.backbones.vgg16 import VGG16
from wsseg_ray.backbones.weights import VGG16_FC
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


def test_side_outputs_are_those_of_all_conv_layers():
    trunk = VGG16.build(False).eval()
    with torch.inference_mode():
        photo = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        outputs = contours.side_outputs(trunk, photo)
        last = trunk(photo)["out"]
    channels = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    sides = [32] * 2 + [16] * 2 + [8] * 3 + [4] * 3 + [2] * 3
    assert [tuple(x.shape) for x in outputs] == [(1, c, s, s) for c, s in zip(channels, sides, strict=True)]
    assert all((x >= 0).all() for x in outputs)
    torch.testing.assert_close(outputs[-1], last)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)
def test_boundary_is_a_perceptron_on_the_hypercolumn(shapes, height, width, seed):
    random = np.random.default_rng(seed)
    outputs = [torch.from_numpy(random.normal(size=(1, *shape)).astype(np.float32)) for shape in shapes]
    widths = [sum(shape[0] for shape in shapes), 5, 4, 1]
    head = [
        (random.normal(size=(n, m)).astype(np.float32), random.normal(size=n).astype(np.float32))
        for m, n in pairwise(widths)
    ]
    columns = [functional.interpolate(x, (height, width), mode="bilinear", align_corners=False) for x in outputs]
    x = torch.cat(columns, dim=1)[0].permute(1, 2, 0)
    for depth, (weight, bias) in enumerate(head):
        x = (torch.relu(x) if depth else x) @ torch.from_numpy(weight).T + torch.from_numpy(bias)
    found = contours.boundary(outputs, (height, width), head)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.sigmoid(x[..., 0]).numpy(), atol=1e-5)


def test_trunk_boundary_runs_the_shipped_head():
    trunk = VGG16.build(False).eval()
    photo = np.random.default_rng(0).integers(0, 256, (20, 33, 3), np.uint8)
    found = contours.trunk_boundary(trunk, photo)
    assert found.shape == (20, 33) and found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()


def test_contour_trunk_takes_the_conv_layers_of_a_full_vgg16():
    trunk = VGG16.build(False)
    state = {f"features.{name}": tensor for name, tensor in trunk.state_dict().items()}
    state |= {name: torch.zeros(1).expand(shape) for name, shape in VGG16_FC.items()}
    file = io.BytesIO()
    torch.save(state, file)
    loaded = contours.contour_trunk(file.getvalue(), "vgg16.pth")
    assert not loaded.training
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded.parameters(), trunk.parameters(), strict=True))
