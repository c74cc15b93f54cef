"""Photos as backbones want them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from wsseg_ray.backbones import MEAN, STD

MAX_PIXELS = 2**21  # that a backbone looks at, where cells lie side by side: bounds its memory and its stored features


def whole_cells(height: int, width: int, stride: int) -> tuple[int, int]:
    """The size nearest to a photo's that has whole cells of `stride` pixels, at least one, and at most MAX_PIXELS."""
    shrink = max(1.0, (height * width / MAX_PIXELS) ** 0.5)
    rows, columns = (max(1, round(side / shrink / stride)) * stride for side in (height, width))
    return rows, columns


def normalise(
    photos: np.ndarray | torch.Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> torch.Tensor:
    """Photos in 0..1, the mean taken off, divided by the standard deviation.

    Arguments:
        photos: (B, H, W, 3) or (H, W, 3) uint8, RGB; a tensor stays on its device.
        mean, std: of each colour, the backbone's; default: ImageNet's.
    Returns (B, 3, H, W) float32, channels last in memory, which convolves faster; one photo gives B = 1.
    Raises ValueError for another shape or dtype.
    """
    if photos.dtype not in (np.uint8, torch.uint8) or photos.ndim not in (3, 4) or photos.shape[-1] != 3:
        raise ValueError(f"photos must be (B, H, W, 3) or (H, W, 3) uint8, got {tuple(photos.shape)} {photos.dtype}")
    tensor = photos if isinstance(photos, torch.Tensor) else torch.tensor(photos)
    batch = tensor.reshape(-1, *photos.shape[-3:]).float()
    return ((batch / 255 - batch.new_tensor(mean)) / batch.new_tensor(std)).permute(0, 3, 1, 2)
