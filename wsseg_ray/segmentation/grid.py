"""The cells of a segmentation network's output, by the names of its backbone and its head. Imports no torch.

There are two kinds of cells (`Backbone.centred`):

- centred: cell (i, j) is centred on pixel (stride i, stride j) of the photo. On photos of stride k + 1 pixels the outer
  cells lie on the outer pixels, so maps are resized with align_corners=True.
- side by side: the cells cover the photo, each its share. Maps are resized with align_corners=False.

`targets` divides the photo into the same cells.
"""

from __future__ import annotations

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.segmentation.heads import HEADS


def cell_stride(backbone: str, head: str) -> int:
    """Distance of two cells of a network's output, in photo pixels.

    Raises ValueError where a name is not known, or the backbone lacks a level that the head needs.
    """
    strides, kind = BACKBONES.get(backbone).dense_strides, HEADS.get(head)
    lacking = [level for level in (*kind.levels, kind.grid) if level not in strides]
    if lacking:
        raise ValueError(
            f"the segmentation head '{head}' needs the level '{lacking[0]}' of a backbone, and '{backbone}' has "
            f"{', '.join(repr(level) for level in strides) or 'none for segmentation'}"
        )
    return strides[kind.grid]


def is_centred(backbone: str) -> bool:
    """Whether a backbone's cells are centred on pixels; otherwise they lie side by side."""
    return BACKBONES.get(backbone).centred


def grid_size(backbone: str, head: str, pixels: int) -> int:
    """Cells of a network's output along a side of `pixels`: DeepLab-LargeFOV has 41 cells for 321 pixels."""
    stride, variant = cell_stride(backbone, head), BACKBONES.get(backbone)
    if variant.centred:
        return -(-pixels // stride)
    return max(1, round(pixels / variant.dense_stride)) * variant.dense_stride // stride


def whole_crop(backbone: str, head: str, pixels: int) -> int:
    """`pixels` rounded up to whole cells: stride k + 1, where the outer cells lie on the outer pixels, or stride k."""
    variant = BACKBONES.get(backbone)
    if variant.centred:
        return pixels + -(pixels - 1) % cell_stride(backbone, head)
    return pixels + -pixels % variant.dense_stride
