"""The fully connected CRF that DeepLab runs on a network's probabilities (Kraehenbuehl and Koltun, 2011)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from wsseg_ray.segmentation.permutohedral import Lattice, build, collect, spread

FLOOR = 1e-5  # the smallest probability, so that its logarithm stays finite
CHUNK = 1 << 17  # pixels that are updated together: their temporary arrays stay in the cache


@torch.no_grad()
def dense_crf(
    photo: np.ndarray,
    probabilities: np.ndarray | torch.Tensor,
    iterations: int = 10,
    bilateral_weight: float = 4,
    bilateral_xy: float = 121,
    bilateral_rgb: float = 5,
    spatial_weight: float = 3,
    spatial_xy: float = 3,
) -> np.ndarray:
    """Labels that follow the photo's edges: mean-field inference with an appearance and a smoothness kernel.

    Both kernels are Gaussian, filtered on a permutohedral lattice and normalised from both sides, as in the authors'
    program and in pydensecrf. Classes are compatible only with themselves (Potts).

    Arguments:
        photo: (H, W, 3) uint8, or P photos of one size (P, H, W, 3).
        probabilities: (C, H, W) floats, a softmax over C <= 256 classes; or (B, C, H, W) from B networks for the same
            photo, which share its lattice. For P photos, one of these per photo. The computation runs on the device of
            a tensor.
        iterations: of mean field.
        bilateral_weight: of the appearance kernel, with widths `bilateral_xy` in pixels and `bilateral_rgb` in grey
            levels.
        spatial_weight: of the smoothness kernel, with width `spatial_xy` in pixels.
    Returns (H, W) uint8, with the leading axes of `probabilities`. The labels of a photo and network do not depend on
    other photos and networks in the call. Costs 0.6 s at 0.2 megapixels and 21 classes on one core.
    Raises ValueError where photo and probabilities do not fit together, a probability is not finite, or a width is not
    positive or so small that 64 bits cannot number the corners of the lattice.
    """
    if photo.dtype != np.uint8 or photo.ndim not in (3, 4) or photo.shape[-1] != 3 or photo.size == 0:
        raise ValueError(f"the photo must be a non-empty (H, W, 3) of uint8, got {photo.shape} of {photo.dtype}")
    photos, (height, width) = photo.shape[:-3], photo.shape[-3:-1]
    shape = tuple(probabilities.shape)
    if (
        len(shape) - len(photos) not in (3, 4)
        or shape[: len(photos)] != photos
        or shape[-2:] != (height, width)
        or not 1 <= shape[-3] <= 256
    ):
        raise ValueError(
            f"probabilities must be ({'P, ' * len(photos)}C, {height}, {width}) with C in 1..256, got {shape}"
        )
    if min(bilateral_xy, bilateral_rgb, spatial_xy) <= 0:
        raise ValueError("the widths of the kernels must be positive")
    if isinstance(probabilities, np.ndarray):
        # PyTorch warns about read-only arrays and refuses negative strides; this copies only such ones.
        probabilities = torch.from_numpy(np.require(probabilities, requirements=["C", "W"]))
    if not torch.isfinite(probabilities).all():
        raise ValueError("probabilities hold NaN or infinity")
    label = partial(
        _labels,
        iterations=iterations,
        bilateral_weight=bilateral_weight,
        bilateral_xy=bilateral_xy,
        bilateral_rgb=bilateral_rgb,
        spatial_weight=spatial_weight,
        spatial_xy=spatial_xy,
    )
    if photos:
        return np.stack([label(*pair) for pair in zip(photo, probabilities, strict=True)])
    return label(photo, probabilities)


def mean_field(log_probabilities: torch.Tensor, kernels: Sequence[Lattice], iterations: int) -> torch.Tensor:
    """The marginals Q of a CRF whose classes are compatible only with themselves.

    Starts from the softmax of `log_probabilities` and repeats Q = softmax(log_probabilities + sum of K Q over kernels),
    all pixels at once. (The constant part of the Potts messages does not change the softmax.)

    Arguments:
        log_probabilities: (N, B, C) float32: N pixels, B independent problems, C classes.
        kernels: filters K over the N pixels, with weight and normalisation in their `shares` and `weights`.
        iterations: how many times Q is updated.
    Returns (N, B, C) float32. An iteration reads (2 * D + 4) * N rows of B * C floats for D corners per pixel.
    """
    marginals = torch.empty_like(log_probabilities)
    values = marginals.view(len(marginals), -1)
    chunks = [slice(start, start + CHUNK) for start in range(0, len(marginals), CHUNK)]
    for iteration in range(iterations + 1):
        blurred = [spread(kernel, values) for kernel in kernels] if iteration else []
        for chunk in chunks:
            logits = log_probabilities[chunk]
            for kernel, table in zip(kernels, blurred, strict=False):
                logits = collect(kernel, table, chunk).view_as(logits).add_(logits)
            _softmax(logits, out=marginals[chunk])
    return marginals


def _labels(
    photo: np.ndarray,
    probabilities: torch.Tensor,
    iterations: int,
    bilateral_weight: float,
    bilateral_xy: float,
    bilateral_rgb: float,
    spatial_weight: float,
    spatial_xy: float,
) -> np.ndarray:
    height, width = photo.shape[:2]
    device = probabilities.device
    kernels = []
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    pixels = torch.stack([x, y]).view(2, -1)
    if bilateral_weight:
        colours = torch.tensor(np.ascontiguousarray(photo), device=device).view(-1, 3).T
        kernels.append(
            _normalised(build(torch.cat([pixels / bilateral_xy, colours / bilateral_rgb])), bilateral_weight)
        )
    if spatial_weight:
        kernels.append(_normalised(build(pixels / spatial_xy), spatial_weight))
    found = mean_field(_log(probabilities), kernels, iterations)
    labels = torch.cat([part.argmax(dim=-1).to(torch.uint8) for part in found.split(CHUNK)])
    return labels.T.reshape(*probabilities.shape[:-3], height, width).cpu().numpy()


def _normalised(kernel: Lattice, weight: float) -> Lattice:
    """The kernel times its weight, divided by the square roots of its row sums on both sides."""
    ones = kernel.weights.new_ones((len(kernel.weights), 1))
    norm = (collect(kernel, spread(kernel, ones)).squeeze(1) + 1e-20).rsqrt_()
    kernel.shares.mul_(norm[kernel.points])
    kernel.weights.mul_(norm[:, None] * weight)
    return kernel


def _log(probabilities: torch.Tensor) -> torch.Tensor:
    """(N, B, C) float32 logarithms of (C, H, W) or (B, C, H, W), pixel after pixel in memory."""
    classes, height, width = probabilities.shape[-3:]
    planes = probabilities.reshape(-1, classes, height * width)
    found = torch.empty((height * width, *planes.shape[:2]), dtype=torch.float32, device=probabilities.device)
    for start in range(0, len(found), CHUNK):
        chunk = slice(start, start + CHUNK)
        found[chunk] = planes[..., chunk].float().clamp(min=FLOOR).log_().permute(2, 0, 1)
    return found


def _softmax(logits: torch.Tensor, out: torch.Tensor) -> None:
    """The softmax over the last axis. torch.softmax takes seven times longer below 16 classes."""
    found = (logits - logits.amax(dim=-1, keepdim=True)).exp_()
    torch.div(found, found.sum(dim=-1, keepdim=True), out=out)
