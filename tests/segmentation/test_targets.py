import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsseg_ray.backbones import STD
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.segmentation.targets import PAD, crop_and_mirror, hard_target, soft_target


def test_soft_target_by_hand():
    superpixels = np.array([[0, 1, 2]])
    maps = np.array([[0.25, 0.75, 0.0], [0.0, 0.75, 0.0]])
    # one pixel a cell: background fills up to 1, or the sum over labels is normalised
    target = soft_target(superpixels, np.ones((1, 3), bool), maps, [2, 0], 3, 1, 3)
    assert target.dtype == np.float32
    assert target[:, 0].T.tolist() == [[0.75, 0, 0, 0.25], [0, 0.5, 0, 0.5], [1, 0, 0, 0]]


def test_soft_target_averages_by_area():
    superpixels = np.arange(5)[None]
    maps = np.array([[1.0, 1.0, 0.0, 0.0, 1.0]])
    target = soft_target(superpixels, np.ones((1, 5), bool), maps, [0], 1, 1, 3)
    # cells lie around pixels 0, 2 and 4 and meet on pixels 1 and 3, which they share
    np.testing.assert_allclose(target[1, 0], [1.5 / 1.5, 0.5 / 2, 1 / 1.5])


def test_padding_counts_nowhere():
    superpixels = np.array([[0, 1, 9999, 9999, 9999]])
    valid = np.array([[True, True, False, False, False]])
    target = soft_target(superpixels, valid, np.array([[1.0, 0.5]]), [0], 1, 1, 3)
    np.testing.assert_allclose(target[:, 0].T, [[0.5 / 3, 2.5 / 3], [0.5, 0.5], [0, 0]], rtol=1e-6)
    mask = np.array([1, 2], np.uint8)
    assert hard_target(mask, superpixels, valid, 1, 5).tolist() == [[1, 2, 255, 255, 255]]
    nothing = soft_target(superpixels, np.zeros((1, 5), bool), np.ones((1, 2)), [0], 1, 1, 3)
    assert (nothing == 0).all()


def test_a_photo_without_labels_is_background():
    target = soft_target(np.zeros((3, 3), int), np.ones((3, 3), bool), np.empty((0, 1)), [], 2, 2, 2)
    assert (target == np.array([1, 0, 0])[:, None, None]).all()


@st.composite
def crops(draw):
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.permutation(5)[: draw(st.integers(1, 3))]
    valid = rng.random((height, width)) < draw(st.sampled_from([0.3, 1.0]))
    return rng.integers(6, size=(height, width)), valid, rng.random((len(labels), 6)), labels, h, w


def shares(pixels: int, cells: int) -> np.ndarray:
    """How much of every pixel is nearest to each cell's centre, (cells, pixels), by cutting pixels at all edges."""
    parts = 2 * max(cells - 1, 1)
    centres = np.linspace(0, pixels - 1, cells) if cells > 1 else np.zeros(1)
    places = (np.arange(pixels * parts) + 0.5) / parts - 0.5
    nearest = np.abs(places[:, None] - centres).argmin(axis=1)
    return np.stack([(nearest == cell).reshape(pixels, parts).mean(axis=1) for cell in range(cells)])


@settings(max_examples=50)
@given(crops())
def test_soft_target_is_the_mean_of_small_parts_by_their_nearest_cell(crop):
    superpixels, valid, maps, labels, h, w = crop
    target = soft_target(superpixels, valid, maps, labels, 5, h, w)
    totals = target.sum(axis=0)
    assert target.shape == (6, h, w) and (np.isclose(totals, 1, atol=1e-6) | (totals == 0)).all()
    dense = np.zeros((6, *superpixels.shape))
    dense[labels + 1] = maps[:, superpixels]
    dense[0] = np.maximum(0, 1 - dense.sum(axis=0))
    dense /= dense.sum(axis=0)
    rows, columns = shares(superpixels.shape[0], h), shares(superpixels.shape[1], w)
    weight = rows @ valid @ columns.T
    expected = rows @ (dense * valid) @ columns.T / np.where(weight > 1e-9, weight, 1) * (weight > 1e-9)
    np.testing.assert_allclose(target, expected, atol=1e-6)


def test_hard_target_takes_the_pixel_under_the_cell():
    pixels = np.arange(81).reshape(9, 9)
    target = hard_target(np.arange(81, dtype=np.uint8), pixels, np.ones((9, 9), bool), 3, 3)
    assert target.dtype == np.int64
    assert target.tolist() == [[0, 4, 8], [36, 40, 44], [72, 76, 80]]
    assert hard_target(np.array([255], np.uint8), np.zeros((2, 2), int), np.ones((2, 2), bool), 1, 1).item() == 255


@pytest.mark.parametrize(("height", "width"), [(5, 6), (2, 9), (3, 1), (4, 4)])
def test_crops_are_windows_of_the_photo(height, width):
    index = np.arange(1, height * width + 1, dtype=np.uint8).reshape(height, width)
    photo = np.stack([index, index, index], axis=2)
    seen = set()
    for seed in range(200):
        cut, (superpixels,), valid = crop_and_mirror(np.random.default_rng(seed), photo, [index], 4)
        assert cut.shape == (4, 4, 3) and cut.dtype == np.uint8 and superpixels.dtype == np.uint8
        assert (cut == np.where(valid[..., None], superpixels[..., None], PAD)).all()
        assert (valid == (superpixels > 0)).all()
        inside = superpixels[: min(height, 4), : min(width, 4)]
        assert valid.sum() == inside.size and (inside > 0).all()
        mirrored = width > 1 and inside[0, 1] < inside[0, 0]
        window = inside[:, ::-1] if mirrored else inside
        top, left = divmod(int(window[0, 0]) - 1, width)
        assert (window == index[top : top + 4, left : left + 4]).all()
        seen.add((top, left, mirrored))
    assert len(seen) == max(height - 3, 1) * max(width - 3, 1) * (2 if width > 1 else 1)


def test_a_photo_is_padded_with_the_mean_colour():
    photo, over = np.full((2, 3, 3), 200, np.uint8), np.full((2, 3), 7)
    cut, (over,), valid = crop_and_mirror(np.random.default_rng(0), photo, [over], 4)
    assert valid.tolist() == [[True] * 3 + [False]] * 2 + [[False] * 4] * 2
    assert cut[~valid].tolist() == [[124, 116, 104]] * 10 and (cut[valid] == 200).all()
    assert over.tolist() == [[7, 7, 7, 0]] * 2 + [[0] * 4] * 2
    # what is left once the mean is subtracted is the rounding to whole grey levels
    assert normalise(cut)[0][:, ~valid].abs().max() <= 0.5 / 255 / min(STD)


def test_the_same_generator_gives_the_same_crop():
    photo = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    first, second = (crop_and_mirror(np.random.default_rng(5), photo, [], 8)[0] for _ in range(2))
    assert (first == second).all()


def test_cells_side_by_side_share_the_photo():
    superpixels, valid = np.arange(6)[None], np.ones((1, 6), bool)
    maps = np.array([[1.0, 1.0, 0.0, 0.0, 1.0, 0.0]])
    target = soft_target(superpixels, valid, maps, [0], 1, 1, 3, centred=False)
    np.testing.assert_allclose(target[1, 0], [1, 0, 0.5])
    target = soft_target(superpixels, valid, maps, [0], 1, 1, 4, centred=False)
    np.testing.assert_allclose(target[1, 0], [1, 0.5 / 1.5, 0.5 / 1.5, 0.5 / 1.5])  # each cell: one and a half pixels
    labels = np.arange(6, dtype=np.uint8)
    assert hard_target(labels, superpixels, valid, 1, 2, centred=False).tolist() == [[1, 4]]
    assert hard_target(labels, superpixels, valid, 1, 6, centred=False).tolist() == [[0, 1, 2, 3, 4, 5]]
