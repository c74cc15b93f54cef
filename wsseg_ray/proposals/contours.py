"""How strong the contour between neighbouring pixels is, by colour and by texture.

Two windows on both sides of each edge of the pixel grid are compared by their means, at several scales, as gPb compares
half discs (Arbeláez et al., PAMI 2011). Backbones find boundaries too, see `boundaries`.
"""

from __future__ import annotations

import higra as hg
import numpy as np
from scipy import ndimage

COLOUR_SCALES = (1, 4, 12)  # depth of the windows, in pixels of a 500x375 photo
TEXTURE_SCALES = (5, 12)  # texture has no meaning in a window of one pixel
DIAGONAL = 625  # of a 500x375 photo, in pixels
XYZ_OF_RGB = np.array(  # linear sRGB to XYZ over the D65 white
    [[0.43395, 0.37621, 0.18984], [0.21267, 0.71515, 0.07218], [0.01775, 0.10947, 0.87278]], np.float32
)


def lab(photo: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB: (H, W, 3) uint8 to (H, W, 3) float32."""
    rgb = np.arange(256) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4).astype(np.float32)
    # Indexing keeps the photo's memory layout, on which numpy's order of summation, and so the rounding, depends.
    xyz = linear[np.ascontiguousarray(photo)] @ XYZ_OF_RGB.T
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def texture(lightness: np.ndarray) -> np.ndarray:
    """Log absolute derivatives of the lightness (H, W) along four directions, (H, W, 4) float32."""
    smooth = ndimage.gaussian_filter(lightness, 0.8)
    down = ndimage.correlate1d(smooth, [-0.5, 0, 0.5], axis=0, mode="nearest")
    right = ndimage.correlate1d(smooth, [-0.5, 0, 0.5], axis=1, mode="nearest")
    derivatives = [right, down, (right + down) / np.sqrt(2), (right - down) / np.sqrt(2)]
    return np.log1p(np.abs(np.stack(derivatives, axis=-1))).astype(np.float32)


def gradients(grid: hg.UndirectedGraph, colours: np.ndarray, textures: np.ndarray) -> np.ndarray:
    """Contour strength of every edge of the pixel grid from colour at three scales, and from texture at two.

    Arguments:
        grid: the 4-adjacency graph of the photo, E edges.
        colours, textures: (H, W, 3) and (H, W, 4) as `lab` and `texture` give them.
    Returns (5, E) float32: three in units of L*a*b*, two in units of log derivatives.
    """
    height, width = colours.shape[:2]
    source, target = grid.edge_list()
    horizontal = source // width == target // width
    smooth = ndimage.gaussian_filter(colours, (0.8, 0.8, 0))
    cues = [(smooth, scale) for scale in COLOUR_SCALES] + [(textures, scale) for scale in TEXTURE_SCALES]
    strengths = np.empty((len(cues), len(source)), np.float32)
    for strength, (channels, scale) in zip(strengths, cues, strict=True):
        radius = max(1, round(scale * np.hypot(height, width) / DIAGONAL))
        strength[horizontal] = _differences(channels, radius, axis=1).ravel()
        strength[~horizontal] = _differences(channels, radius, axis=0).ravel()
    return strengths


def _differences(channels: np.ndarray, radius: int, axis: int) -> np.ndarray:
    """Distance of the means before and after each step along an axis. Windows: `radius` deep, 2 `radius` + 1 wide."""
    means = ndimage.uniform_filter1d(channels, 2 * radius + 1, axis=1 - axis, mode="nearest")
    means = ndimage.uniform_filter1d(means, radius, axis=axis, mode="nearest")
    last = channels.shape[axis] - 1
    step = np.arange(last)
    before = np.take(means, np.maximum(step - (radius - 1) // 2, 0), axis=axis)
    after = np.take(means, np.minimum(step + 1 + radius // 2, last), axis=axis)
    return np.sqrt(np.square(after - before).sum(axis=-1))
