"""Trained networks on whole photos: several scales, mirrored, and in tiles where a photo is large.

A network computes logits of cells; cell (i, j) is centred on pixel (stride i, stride j). So a photo is padded to
stride k + 1 pixels, until its last pixel lies between two cells. The logits of a pixel are interpolated between the
cells around it, at the pixel's place in that view of the photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch.nn import functional

TILE = 1024  # photo pixels per side; limits the memory of feature maps for photos of any size
HALO = 224  # pixels around a tile that are computed too: DeepLab-LargeFOV's cells depend on 217 pixels to each side


class View(NamedTuple):
    """A network's logits of one view of a photo: the photo at some scale, maybe mirrored."""

    logits: torch.Tensor  # (C, h, w), of the cells
    size: tuple[int, int]  # height and width of the view in pixels
    stride: int  # distance of two cells in pixels; the first cell lies on the first pixel
    mirrored: bool


class CellNetwork(Protocol):
    """A network whose cells lie `stride` pixels apart."""

    stride: int

    def __call__(self, photo: torch.Tensor, /) -> torch.Tensor:
        """Logits (1, C, h, w) of a normalised photo (1, 3, H, W)."""
        ...


@torch.no_grad()
def photo_views(
    networks: Sequence[CellNetwork], photo: torch.Tensor, scales: Sequence[float] = (1.0,), mirror: bool = False
) -> list[list[View]]:
    """The logits of each network for a photo at each scale and, with `mirror`, for the mirrored photo at each scale.

    Arguments:
        networks: with the same `stride`. They get the same tensor one after the other.
        photo: (1, 3, H, W), normalised.
        scales: factors of the photo's sides.
    Returns the views of each network. Costs the sum of the squared scales, times 2 with `mirror`.
    """
    stride = networks[0].stride
    found: list[list[View]] = [[] for _ in networks]
    for scale in scales:
        height, width = (max(1, round(side * scale)) for side in photo.shape[2:])
        size = height, width
        scaled = photo if scale == 1 else functional.interpolate(photo, size, mode="bilinear", antialias=scale < 1)
        for mirrored in (False, True)[: 1 + mirror]:
            filled = fill_cells(scaled.flip(3) if mirrored else scaled, stride)
            for views, network in zip(found, networks, strict=True):
                logits = tiled_logits(network, filled)[0].float().cpu()
                views.append(View(logits, size, stride, mirrored))
    return found


def fill_cells(photo: torch.Tensor, stride: int) -> torch.Tensor:
    """A normalised photo (..., H, W) padded with zeros, the mean colour, to stride k + 1 pixels in height and width."""
    height, width = photo.shape[-2:]
    return functional.pad(photo, (0, -(width - 1) % stride, 0, -(height - 1) % stride))


def at_pixels(views: Sequence[View], height: int, width: int) -> torch.Tensor:
    """The mean of the views' logits, interpolated bilinearly at the pixels of a photo: (C, height, width) float32.

    Arguments:
        height, width: of the photo, or of a larger or smaller copy of it.
    Costs C height (h w + w width) multiplications per view.
    """
    total = torch.zeros(())
    for logits, (view_height, view_width), stride, mirrored in views:
        rows = _between_cells(height, view_height, logits.shape[1], stride)
        columns = _between_cells(width, view_width, logits.shape[2], stride, mirrored)
        total = total + rows @ logits @ columns.T
    return total / len(views)


def upsample(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Maps on the output grid (B, C, h, w), interpolated bilinearly at the pixels of a photo of stride k + 1 pixels.

    Returns (B, C, height, width).
    """
    return functional.interpolate(maps, (height, width), mode="bilinear", align_corners=True)


def _between_cells(pixels: int, view_pixels: int, cells: int, stride: int, mirrored: bool = False) -> torch.Tensor:
    """Bilinear weights (pixels, cells) along one axis: where each pixel of a photo lies among the cells of a view."""
    place = (torch.arange(pixels, dtype=torch.float64) + 0.5) * view_pixels / pixels - 0.5
    if mirrored:
        place = view_pixels - 1 - place
    place = (place.clamp(0, view_pixels - 1) / stride).clamp(max=cells - 1)
    return (1 - (place[:, None] - torch.arange(cells)).abs()).clamp(min=0).float()


@torch.no_grad()
def tiled_logits(network: CellNetwork, photo: torch.Tensor, tile: int = TILE, halo: int = HALO) -> torch.Tensor:
    """The network's logits for a photo of any size, in memory limited by the tile.

    If a cell depends on no pixels beyond the halo, as in DeepLab, the logits equal those of the whole photo. Cells of
    torchvision's networks depend on more pixels, and features pooled over the photo are then pooled over the tile.

    Arguments:
        photo: (1, 3, H, W), normalised.
        tile, halo: pixels, multiples of the network's stride.
    Returns (1, C, h, w).
    """
    height, width = photo.shape[2:]
    if max(height, width) <= tile + 1:
        return network(photo)
    stride, rows = network.stride, []
    for top, bottom in _tiles(height, tile):
        row = []
        for left, right in _tiles(width, tile):
            ys, xs = slice(max(0, top - halo), bottom + halo), slice(max(0, left - halo), right + halo)
            logits = network(photo[:, :, ys, xs])
            skip_y, skip_x = (top - ys.start) // stride, (left - xs.start) // stride
            cells_y, cells_x = -(-(bottom - top) // stride), -(-(right - left) // stride)
            row.append(logits[:, :, skip_y : skip_y + cells_y, skip_x : skip_x + cells_x])
        rows.append(torch.cat(row, dim=3))
    return torch.cat(rows, dim=2)


def _tiles(size: int, tile: int) -> list[tuple[int, int]]:
    """Where tiles begin and end along one axis; the last tile also has the pixel after a whole number of tiles."""
    starts = range(0, max(1, size - 1), tile)
    return list(zip(starts, [*starts[1:], size], strict=True))
