import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from wsseg_ray.proposals import generate as generation
from wsseg_ray.proposals.generate import _diverse, _lab, _nodes, generate
from wsseg_ray.proposals.regions import RegionProposals

SQUARES = np.zeros((2, 72, 96), bool)
SQUARES[0, 8:32, 12:36] = True
SQUARES[1, 36:64, 52:80] = True


def squares(noise: float, seed: int = 0) -> np.ndarray:
    photo = np.full((72, 96, 3), (90, 140, 90), float)
    photo[SQUARES[0]] = 200, 40, 40
    photo[SQUARES[1]] = 40, 40, 200
    return np.clip(photo + np.random.default_rng(seed).normal(0, noise, photo.shape), 0, 255).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def check(photo: np.ndarray, count: int) -> tuple[RegionProposals, np.ndarray]:
    """What holds for the proposals of any photo."""
    regions, objectness = generate(photo, count)
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
    return regions, objectness


@pytest.mark.parametrize("amount", [0, 5, 20])
def test_finds_two_squares(amount):
    regions, _ = check(squares(amount), 20)
    masks = np.stack([regions.mask(n) for n in range(len(regions))])
    iou = (SQUARES[:, None] & masks).sum(axis=(2, 3)) / (SQUARES[:, None] | masks).sum(axis=(2, 3))
    assert (iou.max(axis=1) > 0.9).all()


def test_is_deterministic():
    photo = squares(8)
    before = photo.copy()
    regions, objectness = generate(photo, 200)
    again, same = generate(photo, 200)
    assert (photo == before).all()
    assert (regions.superpixels == again.superpixels).all() and (objectness == same).all()
    assert (regions.membership != again.membership).nnz == 0


def test_the_memory_layout_of_the_photo_does_not_matter():
    photo = squares(8)
    read_only = np.asfortranarray(photo)
    read_only.flags.writeable = False
    regions, objectness = generate(photo, 50)
    again, same = generate(read_only, 50)
    assert (regions.superpixels == again.superpixels).all() and (objectness == same).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (40, 60)])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_flat_photo_is_one_proposal(size, value):
    regions, objectness = check(np.full((*size, 3), value, np.uint8), 10)
    assert regions.membership.toarray().tolist() == [[1]] and objectness.tolist() == [0]


def test_a_photo_of_one_superpixel_is_one_proposal(monkeypatch):
    monkeypatch.setattr(generation, "MAX_SUPERPIXELS", 1)
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


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 50), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_small_photos_of_blocks(height, width, count, block, seed):
    blocks = noise(-(-height // block), -(-width // block), seed)
    check(np.kron(blocks, np.ones((block, block, 1), np.uint8))[:height, :width], count)


def test_lab_of_known_colours():
    rgb = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [119, 119, 119]]], np.uint8)
    expected = [[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.2], [87.73, -86.18, 83.18], [32.3, 79.19, -107.86]]
    np.testing.assert_allclose(_lab(rgb)[0], [*expected, [50.03, 0, 0]], atol=0.1)


class Tree:
    """Leaves 0, 1, 2; node 3 of 0 and 1; node 4, the root, of 3 and 2."""

    def num_leaves(self):
        return 3

    def num_vertices(self):
        return 5

    def root(self):
        return 4

    def parents(self):
        return np.array([3, 3, 4, 4, 4])


def test_nodes_list_their_superpixels():
    assert _nodes(Tree()).toarray().tolist() == [[1, 1, 0], [1, 1, 1]]


def test_diverse_prefers_what_is_new_to_a_better_repetition():
    candidates = sparse.csr_array(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], np.float32))
    order, objectness = _diverse(candidates, np.array([9, 1, 5]), np.array([1.0, 0.9, 0.5]), 3)
    assert order.tolist() == [0, 2, 1]
    assert (np.diff(objectness) <= 0).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6), st.integers(0, 14))
def test_diverse_takes_each_once(seed, rows, columns, count):
    random = np.random.default_rng(seed)
    members = random.random((rows, columns)) < 0.4
    members[:, 0] = True
    candidates = sparse.csr_array(members.astype(np.float32))
    order, objectness = _diverse(candidates, random.integers(1, 99, columns), random.normal(size=rows), count)
    assert len(set(order.tolist())) == len(order) == len(objectness) == min(count, rows)
    assert (np.diff(objectness) <= 0).all()
