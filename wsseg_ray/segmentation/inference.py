"""Trained networks on whole photos: several scales, mirrored, and in tiles where a photo is large.

A network computes logits of cells. Where cell (i, j) is centred on pixel (stride i, stride j), a photo is padded to
stride k + 1 pixels, until its last pixel lies between two cells. Where cells lie side by side, they cover any photo.
The logits of a pixel are interpolated between the cells around it, at the pixel's place in that view of the photo.
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
    stride: int  # distance of two cells in pixels, the first on the first pixel; 0: cells side by side cover the view
    mirrored: bool


class CellNetwork(Protocol):
    """A network whose cells lie `stride` pixels apart."""

    stride: int
    centred: bool

    def __call__(self, photo: torch.Tensor, /) -> torch.Tensor:
        """Logits (1, C, h, w) of a normalised photo (1, 3, H, W)."""
        ...


@torch.no_grad()
def photo_views(
    networks: Sequence[CellNetwork], photo: torch.Tensor, scales: Sequence[float] = (1.0,), mirror: bool = False
) -> list[list[View]]:
    """The logits of each network for a photo at each scale and, with `mirror`, for the mirrored photo at each scale.

    Arguments:
        networks: with the same `stride` and kind of cells. They get the same tensor one after the other.
        photo: (1, 3, H, W), normalised.
        scales: factors of the photo's sides.
    Returns the views of each network. Costs the sum of the squared scales, times 2 with `mirror`.
    """
    found: list[list[View]] = [[] for _ in networks]
    for scale in scales:
        for mirrored in (False, True)[: 1 + mirror]:
            for views, view in zip(found, photo_view(networks, photo, scale, mirrored), strict=True):
                views.append(view)
    return found


@torch.no_grad()
def photo_view(networks: Sequence[CellNetwork], photo: torch.Tensor, scale: float, mirrored: bool) -> list[View]:
    """The logits of each network for one view of a photo. Arguments: see `photo_views`."""
    stride, centred = networks[0].stride, networks[0].centred
    seen = scaled(photo, scale)
    size = seen.shape[2], seen.shape[3]
    seen = seen.flip(3) if mirrored else seen
    seen = fill_cells(seen, stride) if centred else seen
    logits = (tiled_logits(network, seen)[0].float().cpu() for network in networks)
    return [View(own, size, stride if centred else 0, mirrored) for own in logits]


def scaled(photo: torch.Tensor, scale: float) -> torch.Tensor:
    """Normalised photos (B, 3, H, W), their sides times a scale."""
    if scale == 1:
        return photo
    size = [max(1, round(side * scale)) for side in photo.shape[2:]]
    return functional.interpolate(photo, size, mode="bilinear", antialias=scale < 1)


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


def upsample(maps: torch.Tensor, height: int, width: int, centred: bool = True) -> torch.Tensor:
    """Maps on the output grid (B, C, h, w), interpolated bilinearly at the pixels of a photo.

    Arguments:
        height, width: of the photo; stride k + 1 pixels where cells are centred.
    Returns (B, C, height, width).
    """
    return functional.interpolate(maps, (height, width), mode="bilinear", align_corners=centred)


def _between_cells(pixels: int, view_pixels: int, cells: int, stride: int, mirrored: bool = False) -> torch.Tensor:
    """Bilinear weights (pixels, cells) along one axis: where each pixel of a photo lies among the cells of a view."""
    place = (torch.arange(pixels, dtype=torch.float64) + 0.5) * view_pixels / pixels - 0.5
    if mirrored:
        place = view_pixels - 1 - place
    place = place.clamp(0, view_pixels - 1)
    place = place / stride if stride else (place + 0.5) * cells / view_pixels - 0.5
    place = place.clamp(0, cells - 1)
    return (1 - (place[:, None] - torch.arange(cells)).abs()).clamp(min=0).float()


@torch.no_grad()
def tiled_logits(network: CellNetwork, photo: torch.Tensor, tile: int = TILE, halo: int = HALO) -> torch.Tensor:
    """The network's logits for a photo of any size, in memory limited by the tile.

    A network whose cells lie side by side gets the whole photo: its backbone limits what it looks at.
    If a cell depends on no pixels beyond the halo, as in DeepLab, the logits equal those of the whole photo. Cells of
    torchvision's networks depend on more pixels, and features pooled over the photo are then pooled over the tile.

    Arguments:
        photo: (1, 3, H, W), normalised.
        tile, halo: pixels, multiples of the network's stride.
    Returns (1, C, h, w).
    """
    height, width = photo.shape[2:]
    if not network.centred or max(height, width) <= tile + 1:
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
