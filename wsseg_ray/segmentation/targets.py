"""Training data of a segmentation network: a crop of the photo, and the supervision on the network's output grid.

Supervision has one value per superpixel, so the crop of the superpixels shows where each value belongs. Cell i of h
cells over H pixels is centred on pixel i (H - 1) / (h - 1), or, where cells lie side by side, on (i + 1/2) H / h - 1/2,
as in `grid`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsseg_ray.backbones import MEAN
from wsseg_ray.segmentation.losses import IGNORE

PAD = np.rint(255 * np.array(MEAN)).astype(np.uint8)  # near 0 once the mean is subtracted, as in DeepLab
SLIVER = 1e-9  # pixels: rounding error of the overlap of a cell and a pixel that only touch


def crop_and_mirror(
    rng: np.random.Generator, photo: np.ndarray, arrays: Sequence[np.ndarray], crop: int, padding: np.ndarray = PAD
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """A random square of the photo, mirrored with probability 1/2, never resized; the same square of other arrays.

    A photo smaller than the crop is padded at the bottom and on the right: the photo with its mean colour, the
    arrays with zeros.

    Arguments:
        photo: (H, W, 3) uint8, RGB.
        arrays: (H, W) each, such as superpixels or masks.
        crop: side of the square, in pixels.
        padding: (3,) uint8, the colour around the photo: the mean that the backbone normalises photos with.
    Returns the photo (crop, crop, 3), the arrays (crop, crop), and (crop, crop) bool: True in the photo, False in the
    padding.
    """
    height, width = photo.shape[:2]
    top, left = (int(rng.integers(max(size - crop, 0) + 1)) for size in (height, width))
    mirror = bool(rng.integers(2))

    def cut(array: np.ndarray, padding: np.ndarray | int = 0) -> np.ndarray:
        piece = array[top : top + crop, left : left + crop]
        if mirror:
            piece = piece[:, ::-1]
        padded = np.full((crop, crop, *array.shape[2:]), padding, array.dtype)
        padded[: piece.shape[0], : piece.shape[1]] = piece
        return padded

    return cut(photo, padding), [cut(array) for array in arrays], cut(np.ones((height, width), bool))


def soft_target(
    superpixels: np.ndarray,
    valid: np.ndarray,
    maps: np.ndarray,
    labels: Sequence[int],
    classes: int,
    h: int,
    w: int,
    centred: bool = True,
) -> np.ndarray:
    """Network_A's target: `p^k` and `p^bg` of Eq. (2), normalised over channels, averaged by area onto the grid.

    Arguments:
        superpixels: (H, W) of the crop, values 0..S-1.
        valid: (H, W) bool, pixels of the photo; pixels of the padding do not count.
        maps: (K, S), the localization map of each label, 0..1.
        labels: K classes, 0..classes - 1; class k goes to channel k + 1, background is channel 0.
        h, w: the grid, at most (H, W).
        centred: the kind of its cells, see `grid`.
    Returns (classes + 1, h, w) float32, a distribution per cell; zeros where a cell has no valid pixel.
    Costs (K + 1) H W h multiplications.
    """
    maps = maps.astype(np.float64)
    total = maps.sum(axis=0)
    channels = np.concatenate([np.maximum(0, 1 - total)[None], maps]) / np.maximum(total, 1)  # (K + 1, S)
    rows, columns = (_cell_areas(*side, centred) for side in zip(superpixels.shape, (h, w), strict=True))
    weight = rows @ valid @ columns.T  # (h, w)
    covered = weight > SLIVER
    inside = np.where(valid, superpixels, 0)
    averages = rows @ (channels[:, inside] * valid) @ columns.T / np.where(covered, weight, 1) * covered
    target = np.zeros((classes + 1, h, w), np.float32)
    target[[0, *(label + 1 for label in labels)]] = averages
    return target


def hard_target(
    mask: np.ndarray, superpixels: np.ndarray, valid: np.ndarray, h: int, w: int, centred: bool = True
) -> np.ndarray:
    """Network_B's target: the mask at the pixel on which each cell is centred.

    For a mask with one class per pixel instead of per superpixel: `hard_target(np.arange(256), pixels, valid, h, w)`.

    Arguments:
        mask: (S,) uint8, the class of each superpixel; 0: background, 255: ignore.
        superpixels, valid, h, w, centred: see `soft_target`.
    Returns (h, w) int64, 255 where the pixel lies in the padding.
    """
    sides = zip(valid.shape, (h, w), strict=True)
    grid = np.ix_(*(np.rint(_centres(pixels, cells, centred)).astype(int) for pixels, cells in sides))
    inside = valid[grid]
    return np.where(inside, mask[np.where(inside, superpixels[grid], 0)], IGNORE).astype(np.int64)


def _centres(pixels: int, cells: int, centred: bool) -> np.ndarray:
    """Centres of the cells along one axis, in pixels, (cells,); a single cell is centred in the middle."""
    if centred and cells > 1:
        return np.linspace(0, pixels - 1, cells)
    return (np.arange(cells) + 0.5) * pixels / cells - 0.5


def _cell_areas(pixels: int, cells: int, centred: bool) -> np.ndarray:
    """Length of each pixel's overlap with each cell on one axis, (cells, pixels); cells meet midway between centres."""
    centres = _centres(pixels, cells, centred)
    edges = np.concatenate([[-0.5], (centres[1:] + centres[:-1]) / 2, [pixels - 0.5]])
    pixel = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], pixel + 0.5) - np.maximum(edges[:-1, None], pixel - 0.5)
    return np.maximum(overlap, 0)
