"""`roi`: RoIAlign (He et al., ICCV 2017) of each region's box, on the photo's feature map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from wsseg_ray.hcp import pooling
from wsseg_ray.hcp.pooling.boxes import align, split
from wsseg_ray.proposals.regions import RegionProposals

if TYPE_CHECKING:
    from wsseg_ray.hcp.network import HypothesisNetwork


def pool_boxes(feature_map: torch.Tensor, boxes: np.ndarray, stride: int, grid: int) -> torch.Tensor:
    """RoIAlign: a grid of cells per box, each the mean of 2x2 bilinear samples of the photo's feature map.

    Arguments:
        feature_map: (C, h, w).
        boxes: (N, 4) photo px: x0, y0, x1, y1, the end exclusive.
        stride: photo pixels per feature cell.
        grid: cells per side.
    Returns (N, C, grid, grid); gradients flow to the feature map.
    """
    return align(feature_map, boxes, grid, scale=1 / stride, samples=2)


class Roi:
    """`pool_boxes`. For the whole photo, means in a grid of cells: RoIAlign would sample only 2x2 points per cell."""

    needs_photo = False

    def inputs(self, channels: int, grid: int) -> int:
        return channels * grid**2

    def whole(self, network: HypothesisNetwork, source: torch.Tensor) -> torch.Tensor:
        return functional.adaptive_avg_pool2d(source, network.grid)

    def chunks(
        self, network: HypothesisNetwork, source: torch.Tensor, regions: RegionProposals
    ) -> Iterator[torch.Tensor]:
        together = max(1, pooling.MAX_NUMBERS // self.inputs(len(source), network.grid))
        for boxes in split(regions.boxes, together):
            yield pool_boxes(source, boxes, network.stride, network.grid)

    def convert_fc6(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


ROI = Roi()
