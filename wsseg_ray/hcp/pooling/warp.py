"""`warp`, the paper's: each region's box is cut from the photo, resized to a square, and passes the backbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from wsseg_ray.hcp.pooling.boxes import align, split
from wsseg_ray.proposals.regions import RegionProposals

if TYPE_CHECKING:
    from wsseg_ray.hcp.network import HypothesisNetwork

CHUNK = 64  # warped crops per forward pass: 40 MB of photos and 1 GB of VGG-16's feature maps


def warp_crops(photo: torch.Tensor, boxes: np.ndarray, size: int) -> torch.Tensor:
    """Each box of a photo, resized bilinearly to a square; the aspect ratio is not kept.

    Costs 12 size^2 bytes per box (0.6 MB at 224): call it with chunks of boxes.

    Arguments:
        photo: (3, H, W) normalised.
        boxes: (N, 4) px: x0, y0, x1, y1, the end exclusive.
    Returns (N, 3, size, size).
    """
    return align(photo, boxes, size, scale=1.0, samples=1)


class Warp:
    """Maxima in a grid of cells (VGG-16's pool5 on a 14x14 map) of the feature map of each warped box."""

    needs_photo = True

    def inputs(self, channels: int, grid: int) -> int:
        return channels * grid**2

    def whole(self, network: HypothesisNetwork, source: torch.Tensor) -> torch.Tensor:
        return _pool(network, source[0], np.array([[0, 0, source.shape[3], source.shape[2]]]))

    def chunks(
        self, network: HypothesisNetwork, source: torch.Tensor, regions: RegionProposals
    ) -> Iterator[torch.Tensor]:
        for boxes in split(regions.boxes, CHUNK):
            yield _pool(network, source, boxes)

    def convert_fc6(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


def _pool(network: HypothesisNetwork, photo: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    maps = network.features(warp_crops(photo, boxes, network.crop))
    return functional.adaptive_max_pool2d(maps, network.grid)


WARP = Warp()
