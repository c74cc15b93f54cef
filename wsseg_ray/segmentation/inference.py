"""A trained network on whole photos: several scales, mirrored, and in tiles where a photo is large."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from wsseg_ray.segmentation.deeplab import upsample

TILE = 1024  # photo pixels a side; bounds the memory that feature maps take, whatever the photo's size
HALO = 224  # pixels around a tile that its cells may look at: DeepLab-LargeFOV's cells see 217 to each side


@torch.no_grad()
def photo_logits(
    network: nn.Module, photo: torch.Tensor, scales: Sequence[float] = (1.0,), mirror: bool = False
) -> torch.Tensor:
    """Logits of a photo: the mean over scales and, if asked, over the photo and its mirror image.

    Arguments:
        network: has a `stride` and maps (1, 3, H, W) to (1, C, h, w).
        photo: (1, 3, H, W), normalised.
        scales: factors of the photo's sides.
    Returns (C, h, w) float32, the grid of the largest scale. Costs the sum of the squared scales, twice with `mirror`.
    """
    found = []
    for scale in scales:
        size = [max(1, round(side * scale)) for side in photo.shape[2:]]
        scaled = photo if scale == 1 else functional.interpolate(photo, size, mode="bilinear", antialias=scale < 1)
        found.append(tiled_logits(network, scaled).float())
        if mirror:
            found.append(tiled_logits(network, scaled.flip(3)).float().flip(3))
    height, width = (max(logits.shape[axis] for logits in found) for axis in (2, 3))
    return torch.stack([upsample(logits, height, width)[0] for logits in found]).mean(dim=0)


@torch.no_grad()
def tiled_logits(network: nn.Module, photo: torch.Tensor, tile: int = TILE, halo: int = HALO) -> torch.Tensor:
    """The network's answer for a photo of any size, in memory bounded by the tile.

    Where cells see no farther than the halo, as DeepLab's do, it is the answer for the whole photo. torchvision's
    networks see farther, and take what they pool over a photo from the tile.

    Arguments:
        photo: (1, 3, H, W), normalised.
        tile, halo: pixels, multiples of the network's stride.
    Returns (1, C, h, w).
    """
    height, width = photo.shape[2:]
    if max(height, width) <= tile:
        return network(photo)
    stride, rows = network.stride, []
    for top in range(0, height, tile):
        row = []
        for left in range(0, width, tile):
            ys, xs = (slice(max(0, start - halo), start + tile + halo) for start in (top, left))
            logits = network(photo[:, :, ys, xs])
            skip_y, skip_x = (top - ys.start) // stride, (left - xs.start) // stride
            cells = [-(-min(tile, size - start) // stride) for size, start in ((height, top), (width, left))]
            row.append(logits[:, :, skip_y : skip_y + cells[0], skip_x : skip_x + cells[1]])
        rows.append(torch.cat(row, dim=3))
    return torch.cat(rows, dim=2)
