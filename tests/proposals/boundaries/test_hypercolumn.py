"""The perceptron on the hypercolumn, and every backbone with the perceptron that was trained with it."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.weights import VGG16_FC, Bare
from wsseg_ray.errors import WeightsError
from wsseg_ray.proposals.boundaries import BOUNDARIES
from wsseg_ray.proposals.boundaries.hypercolumn import boundary, find, load, outputs
from wsseg_ray.proposals.learned import layers


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_boundary_is_a_perceptron_on_the_hypercolumn(shapes, height, width, seed, centred):
    random = np.random.default_rng(seed)
    outputs = [torch.from_numpy(random.normal(size=(1, *shape)).astype(np.float32)) for shape in shapes]
    widths = [sum(shape[0] for shape in shapes), 5, 4, 1]
    head = [
        (random.normal(size=(n, m)).astype(np.float32), random.normal(size=n).astype(np.float32))
        for m, n in pairwise(widths)
    ]
    columns = [functional.interpolate(x, (height, width), mode="bilinear", align_corners=centred) for x in outputs]
    x = torch.cat(columns, dim=1)[0].permute(1, 2, 0)
    for depth, (weight, bias) in enumerate(head):
        x = (torch.relu(x) if depth else x) @ torch.from_numpy(weight).T + torch.from_numpy(bias)
    found = boundary(outputs, (height, width), head, centred)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.sigmoid(x[..., 0]).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", BOUNDARIES.names)
def test_every_backbone_fits_its_perceptron(name):
    finder = BOUNDARIES.get(name)
    backbone = Bare(BACKBONES.get(finder.backbone)).backbone.eval()
    photo = np.random.default_rng(0).integers(0, 256, (20, 33, 3), np.uint8)
    with torch.inference_mode():
        channels = sum(own.shape[1] for own in outputs(finder, backbone, photo))
    assert layers(finder.learned, "boundary")[0][0].shape == (32, channels)
    found, learned = find(finder, backbone, photo)
    assert found.shape == (20, 33) and found.dtype == np.float32 and learned == finder.learned
    assert ((found >= 0) & (found <= 1)).all()


def test_a_full_vgg16_serves():
    backbone = BACKBONES.get("vgg16").build(False)
    state = {f"features.{name}": tensor for name, tensor in backbone.state_dict().items()}
    state |= {name: torch.zeros(1).expand(shape) for name, shape in VGG16_FC.items()}
    file = io.BytesIO()
    torch.save(state, file)
    loaded = load(BOUNDARIES.get("vgg16"), file.getvalue(), "vgg16.pth")
    assert not loaded.training
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(loaded.parameters(), backbone.parameters(), strict=True)
    )


def test_weights_that_are_not_there_are_named():
    with pytest.raises(WeightsError, match=r"gone\.pth"):
        load(BOUNDARIES.get("vgg16"), "gone.pth")
