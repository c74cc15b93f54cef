"""What the poolings of boxes share."""

from __future__ import annotations

import numpy as np
import torch


def align(image: torch.Tensor, boxes: np.ndarray, size: int, scale: float, samples: int) -> torch.Tensor:
    """A grid of cells per box, each the mean of bilinear samples of an image.

    Arguments:
        image: (C, h, w).
        boxes: (N, 4): x0, y0, x1, y1, the end exclusive.
        size: cells a side.
        scale: by which boxes are multiplied to be in pixels of the image.
        samples: a side of each cell.
    Returns (N, C, size, size) float32.
    """
    from torchvision.ops import roi_align  # with all of torchvision, a second and a half: here alone

    image = image.float()
    corners = torch.as_tensor(np.array(boxes, np.float32), device=image.device)
    return roi_align(image[None], [corners], size, spatial_scale=scale, sampling_ratio=samples, aligned=True)


def split(boxes: np.ndarray, size: int) -> list[np.ndarray]:
    """Boxes (N, 4) in parts of about equal size, at most `size` each, at least one."""
    return np.array_split(boxes, max(1, -(-len(boxes) // size)))
