from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wsseg_ray.proposals import generate as generation
from wsseg_ray.proposals import hierarchies
from wsseg_ray.proposals.boundaries import Boundary
from wsseg_ray.proposals.generate import generate
from wsseg_ray.proposals.regions import RegionProposals

SQUARES = np.zeros((2, 72, 96), bool)
SQUARES[0, 8:32, 12:36] = True
SQUARES[1, 36:64, 52:80] = True
NO_BOUNDARY = Boundary(np.zeros((72, 96), np.float32), "vgg16")
TRUE = np.maximum(*(square ^ ndimage.binary_erosion(square) for square in SQUARES)).astype(np.float32)
TRUE_BOUNDARY = Boundary(TRUE, "vgg16")


def squares(noise: float, seed: int = 0) -> np.ndarray:
    photo = np.full((72, 96, 3), (90, 140, 90), float)
    photo[SQUARES[0]] = 200, 40, 40
    photo[SQUARES[1]] = 40, 40, 200
    return np.clip(photo + np.random.default_rng(seed).normal(0, noise, photo.shape), 0, 255).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def check(photo: np.ndarray, count: int, boundary: Boundary | None = None) -> tuple[RegionProposals, np.ndarray]:
    """What holds for the proposals of any photo."""
    regions, objectness = generate(photo, count, boundary)
    assert regions.superpixels.shape == photo.shape[:2]
    assert 1 <= len(regions) == len(objectness) <= count
    assert objectness.dtype == np.float32
    assert np.isfinite(objectness).all() and (objectness >= 0).all() and (np.diff(objectness) <= 0).all()
    members = regions.membership.toarray()
    assert members.any(axis=1).all()
    assert len(np.unique(members, axis=0)) == len(members)
    whole = members.all(axis=1)
    assert not whole[:-1].any()
    assert whole[-1] or len(regions) == count
    assert (objectness[~whole] > 0).all() and (objectness[whole] == 0).all()
    return regions, objectness


def overlaps(regions: RegionProposals) -> np.ndarray:
    """Best IoU with each square, (2,)."""
    masks = np.stack([regions.mask(n) for n in range(len(regions))])
    iou = (SQUARES[:, None] & masks).sum(axis=(2, 3)) / (SQUARES[:, None] | masks).sum(axis=(2, 3))
    return iou.max(axis=1)


@pytest.mark.parametrize("boundary", [None, NO_BOUNDARY, TRUE_BOUNDARY, Boundary(TRUE, "lite2")])
@pytest.mark.parametrize("amount", [0, 5, 20])
def test_finds_two_squares(amount, boundary):
    # A drawing without noise is like no photo that the ranking learned from: without a backbone it needs more.
    regions, _ = check(squares(amount), 40 if boundary is None and amount == 0 else 20, boundary)
    assert (overlaps(regions) > 0.9).all()


@pytest.mark.parametrize("boundary", [None, Boundary(np.zeros((27, 36), np.float32), "vgg16")])
def test_a_large_photo_is_shrunk(boundary, monkeypatch):
    monkeypatch.setattr(generation, "MAX_WORKING_PIXELS", 1000)
    photo = squares(5)
    assert generation.shrink(photo).shape == (27, 36, 3)
    regions, _ = check(photo, 1000, boundary)  # all: this is about their size, not about their order
    assert regions.superpixels.shape == (72, 96)
    assert (overlaps(regions) > 0.9).all()


def test_a_small_photo_is_not_shrunk():
    photo = squares(5)
    assert generation.shrink(photo) is photo
    assert generation.shrink(np.zeros((500, 500, 3), np.uint8)).shape == (500, 500, 3)
    assert generation.shrink(np.zeros((1, 10**6, 3), np.uint8)).shape == (1, 500_000, 3)


def test_a_boundary_of_another_size_is_an_error(monkeypatch):
    monkeypatch.setattr(generation, "MAX_WORKING_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"a boundary of \(72, 96\) for a photo of \(27, 36\)"):
        generate(squares(5), 20, NO_BOUNDARY)


@pytest.mark.parametrize("boundary", [None, TRUE_BOUNDARY])
def test_is_deterministic(boundary):
    photo = squares(8)
    before = photo.copy()
    regions, objectness = generate(photo, 200, boundary)
    again, same = generate(photo, 200, boundary)
    assert (photo == before).all()
    assert (regions.superpixels == again.superpixels).all() and (objectness == same).all()
    assert (regions.membership != again.membership).nnz == 0


@pytest.mark.parametrize("boundary", [None, TRUE_BOUNDARY])
def test_the_memory_layout_of_the_photo_does_not_matter(boundary):
    photo = squares(8)
    regions, objectness = generate(photo, 50, boundary)
    for axes in permutations(range(3)):
        stored = photo.transpose(axes)[:, ::-1].copy()
        same_photo = stored[:, ::-1].transpose(np.argsort(axes))
        same_photo.flags.writeable = False
        again, same = generate(same_photo, 50, boundary and Boundary(np.asfortranarray(TRUE), "vgg16"))
        assert (regions.superpixels == again.superpixels).all() and (objectness == same).all()
        assert (regions.membership != again.membership).nnz == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (40, 60)])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_flat_photo_is_one_proposal(size, value):
    regions, objectness = check(np.full((*size, 3), value, np.uint8), 10)
    assert regions.membership.toarray().tolist() == [[1]] and objectness.tolist() == [0]


def test_a_photo_of_one_superpixel_is_one_proposal(monkeypatch):
    monkeypatch.setattr(hierarchies, "MAX_SUPERPIXELS", 1)
    regions, objectness = check(squares(8), 10)
    assert regions.membership.toarray().tolist() == [[1]] and objectness.tolist() == [0]


@pytest.mark.parametrize("size", [(1, 2), (7, 1), (1, 80), (8, 8), (1, 700), (700, 1), (2, 300), (10, 10), (60, 80)])
def test_any_shape(size):
    photo = noise(*size)
    check(photo, 1)
    check(photo, 60)
    check(np.repeat(photo[..., :1], 3, axis=2), 60)
    steps = np.zeros((*size, 3), np.uint8)
    steps[size[0] // 2 :, size[1] // 2 :] = 255
    check(steps, 60)


@pytest.mark.parametrize("row", [0, 20, 39])
def test_rows_of_one_pixel(row):
    photo = np.full((40, 50, 3), 30, np.uint8)
    photo[row] = 220, 200, 20
    check(photo, 100)
    check(photo.transpose(1, 0, 2), 100)


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 50), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_small_photos_of_blocks(height, width, count, block, seed):
    blocks = noise(-(-height // block), -(-width // block), seed)
    check(np.kron(blocks, np.ones((block, block, 1), np.uint8))[:height, :width], count)
