"""Functions that `roi` and `warp` share."""

from __future__ import annotations

import numpy as np
import torch


def align(image: torch.Tensor, boxes: np.ndarray, size: int, scale: float, samples: int) -> torch.Tensor:
    """A grid of cells per box, each the mean of bilinear samples of an image.

    Arguments:
        image: (C, h, w).
        boxes: (N, 4): x0, y0, x1, y1, the end exclusive.
        size: cells per side.
        scale: factor from boxes to pixels of the image.
        samples: per side of each cell.
    Returns (N, C, size, size) float32.
    """
    from torchvision.ops import roi_align  # imported here: torchvision takes 1.5 s to import

    image = image.float()
    corners = torch.as_tensor(np.array(boxes, np.float32), device=image.device)
    return roi_align(image[None], [corners], size, spatial_scale=scale, sampling_ratio=samples, aligned=True)


def split(boxes: np.ndarray, size: int) -> list[np.ndarray]:
    """Boxes (N, 4) in parts of about equal length, at most `size` each; at least one part."""
    return np.array_split(boxes, max(1, -(-len(boxes) // size)))
