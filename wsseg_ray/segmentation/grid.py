"""The cells of a segmentation network's output, by the names of its backbone and its head. Imports no torch.

Cell (i, j) looks at the photo around pixel (stride i, stride j). On photos of stride k + 1 pixels the outer cells lie
on the outer pixels, so maps are resized with align_corners=True, and `targets` cuts the photo into cells the same way.
"""

from __future__ import annotations

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.segmentation.heads import HEADS


def cell_stride(backbone: str, head: str) -> int:
    """Photo pixels from cell to cell of a network's output.

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


def grid_size(backbone: str, head: str, pixels: int) -> int:
    """Cells of a network's output along a side of so many pixels: DeepLab-LargeFOV makes 41 of 321."""
    return -(-pixels // cell_stride(backbone, head))


def whole_cells(backbone: str, head: str, pixels: int) -> int:
    """So many pixels a side, or a few more: stride k + 1, where the outer cells lie on the outer pixels."""
    return pixels + -(pixels - 1) % cell_stride(backbone, head)
