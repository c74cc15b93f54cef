"""How strong the contour between neighbouring pixels is, by colour, by texture, and by a VGG-16 backbone.

Colour and texture: two windows on both sides of each edge of the pixel grid are compared by their means, at several
scales, as gPb compares half discs (Arbeláez et al., PAMI 2011). Backbone: a small network on the outputs of all conv
layers of an ImageNet VGG-16, similar to HED (Xie and Tu, ICCV 2015) and PixelNet (Bansal et al., 2017). It was trained
on the human boundaries of BSDS500; `benchmarks/train_proposals.py` makes its weights.
"""

from __future__ import annotations

from pathlib import Path

import higra as hg
import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

from wsseg_ray.backbones.photos import normalise
from wsseg_ray.backbones.vgg import VGG
from wsseg_ray.backbones.vgg16 import VGG16
from wsseg_ray.backbones.weights import Bare, load_weights
from wsseg_ray.proposals.learned import Layers, layers

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


def side_outputs(trunk: nn.Sequential, photo: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of all conv layers after their ReLU, in order.

    Arguments:
        trunk: VGG-16's conv layers, see `backbones.vgg.conv_layers`.
        photo: (1, 3, H, W) float32, see `backbones.photos.normalise`.
    Returns 13 tensors (1, C, h, w). Costs one forward pass, and 200 MB of memory at 500x375.
    """
    outputs = []
    for layer in trunk:
        if isinstance(layer, nn.ReLU):
            photo = functional.relu(photo)  # in place would save nothing: the conv layer's output is not kept
            outputs.append(photo)
        else:
            photo = layer(photo)
    return outputs


def boundary(outputs: list[torch.Tensor], size: tuple[int, int], head: Layers) -> np.ndarray:
    """Probability that a person draws a boundary through a pixel, from the backbone's side outputs.

    A perceptron on the hypercolumn, the outputs of all layers at a pixel. Its first layer is linear, so it is applied
    to each output at that output's resolution; the results are resized bilinearly to the photo's size and summed.

    Arguments:
        outputs: from `side_outputs`, C channels in total.
        size: height and width of the photo.
        head: weights (out, in) and biases (out,) of three layers; the first has C inputs.
    Returns (H, W) float32 in 0..1. Costs 0.15 s at 500x375.
    """
    (weight, bias), *others = [(torch.from_numpy(w), torch.from_numpy(b)) for w, b in head]
    by_size: dict[torch.Size, torch.Tensor] = {}
    nothing = torch.zeros(())
    for output, part in zip(outputs, weight.split([output.shape[1] for output in outputs], dim=1), strict=True):
        share = functional.conv2d(output, part.to(output.device)[:, :, None, None])
        by_size[share.shape] = by_size.get(share.shape, nothing) + share
    parts = (functional.interpolate(x, size, mode="bilinear", align_corners=False) for x in by_size.values())
    hidden = sum(parts, nothing)
    hidden = (hidden[0].cpu().flatten(1) + bias[:, None]).T  # (H*W, hidden)
    for weight, bias in others:
        hidden = functional.linear(functional.relu(hidden), weight, bias)
    return torch.sigmoid(hidden[:, 0]).reshape(size).numpy()


@torch.inference_mode()
def trunk_boundary(trunk: nn.Sequential, photo: np.ndarray) -> np.ndarray:
    """Probability that a person draws a boundary through a pixel, by the head in the package.

    Arguments:
        trunk: VGG-16's conv layers with ImageNet's weights, on any device.
        photo: (H, W, 3) uint8, RGB.
    Returns (H, W) float32. Costs the backbone's forward pass and 0.15 s at 500x375.
    """
    batch = normalise(photo).to(next(trunk.parameters()).device)
    return boundary(side_outputs(trunk, batch), photo.shape[:2], layers("boundary"))


def contour_trunk(source: str | Path | bytes, name: str | None = None) -> VGG:
    """VGG-16's conv layers with weights, for `trunk_boundary`.

    Arguments:
        source, name: see `backbones.weights.load_weights`; ImageNet's weights, with which the head was trained.
    Raises WeightsError where the weights cannot be used.
    """
    network = Bare(VGG16)
    load_weights(network, source, name)
    assert isinstance(network.backbone, VGG)
    return network.backbone.eval()
