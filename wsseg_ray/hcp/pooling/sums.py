"""Poolings that need of each region only the sum of the features over it: `M (A F)`.

`A` (S, cells) says how much each cell of the feature map belongs to each superpixel, `M` (N, S) which superpixels each
region has. Both are sparse and do not depend on the network, so tasks without a network make them (`shares_of`), and a
GPU does nothing but the two products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional

from wsseg_ray.backbones.precision import full_precision
from wsseg_ray.hcp.pooling import parts
from wsseg_ray.proposals.regions import RegionProposals

if TYPE_CHECKING:
    from wsseg_ray.hcp.network import HypothesisNetwork

BAND = 4_000_000  # numbers that are added up at once: superpixels times cells


class Shares(NamedTuple):
    """The matrices `A` (S, cells) and `M` (N, S) of a photo as CSR rows, and the areas of its regions."""

    cell_starts: np.ndarray  # (S + 1,) int32
    cells: np.ndarray  # (nnz(A),) int32
    cell_shares: np.ndarray  # (nnz(A),) float32
    starts: np.ndarray  # (N + 1,) int32
    superpixels: np.ndarray  # (nnz(M),) int32 or uint16
    areas: np.ndarray  # (N,) float32 pixels
    pixels: int  # of the photo

    def __len__(self) -> int:
        """How many regions there are."""
        return len(self.areas)


def shares_of(regions: RegionProposals, h: int, w: int) -> Shares:
    """The shares of a photo's regions in the cells of a feature map of (h, w).

    Costs `superpixel_weights`.
    """
    cells = superpixel_weights(regions.superpixels, h, w)
    return Shares(
        cells.indptr.astype(np.int32),
        cells.indices.astype(np.int32),
        cells.data,
        regions.membership.indptr.astype(np.int32),
        regions.membership.indices.astype(np.int32),
        regions.region_areas.astype(np.float32),
        regions.superpixels.size,
    )


class Sums(NamedTuple):
    """Sums of features over the pixels of N regions, of one photo or of several, on the device of the feature maps."""

    inside: torch.Tensor  # (N, C) of each region
    whole: torch.Tensor  # of the photo of each region, (N, C); (1, C) where there is one photo
    areas: torch.Tensor  # (N, 1) pixels of each region
    pixels: torch.Tensor  # (N, 1) pixels of the photo of each region


def sums_over(feature_maps: Sequence[torch.Tensor], shares: Sequence[Shares]) -> Sums:
    """Sums of feature maps, upsampled to their photos, over each region: `M (A F)`, regions photo after photo.

    Several photos are one photo whose cells, superpixels and regions have higher numbers. So a GPU is given the same
    few operations for any number of photos.
    Costs (nnz(A) + nnz(M)) C additions: 9 ms for 1,000 proposals, 25 x 19 cells and 944 channels on one core.

    Arguments:
        feature_maps: (C, h, w) of each whole photo.
        shares: of each photo, in the cells of its map.
    Returns float32; gradients flow to the feature maps.
    """
    device, counts = feature_maps[0].device, [len(own) for own in shares]
    superpixels = [len(own.cell_starts) - 1 for own in shares]
    cells = _joined(
        [own.cell_starts for own in shares], [own.cells for own in shares], [own[0].numel() for own in feature_maps]
    )
    members = _joined([own.starts for own in shares], [own.superpixels for own in shares], superpixels)
    weights = torch.from_numpy(np.concatenate([own.cell_shares for own in shares])).to(device)
    features = torch.cat([own.flatten(1) for own in feature_maps], dim=1).float().T.contiguous()
    with full_precision(device):  # with bfloat16 weights a mean is wrong by up to 0.4 %
        by_superpixel = _added(features, *cells, weights)
        inside = _added(by_superpixel, *members)
        whole = torch.stack([own.sum(dim=0) for own in by_superpixel.split(superpixels)])
    if len(shares) > 1:
        whole = whole[torch.from_numpy(np.repeat(np.arange(len(shares)), counts)).to(device)]
    areas = np.concatenate([own.areas for own in shares])
    pixels = np.repeat([own.pixels for own in shares], counts)
    sizes = torch.from_numpy(np.stack([areas, pixels]).astype(np.float32)).to(device)
    return Sums(inside, whole, *sizes[..., None])


def _joined(
    starts: Sequence[np.ndarray], indices: Sequence[np.ndarray], columns: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and starts of sparse matrices as one, in which each follows the columns and rows of those before."""
    first = np.cumsum([0, *columns], dtype=np.int32)
    numbers = np.cumsum([0, *map(len, indices)], dtype=np.int32)
    moved = [own.astype(np.int32, copy=False) + before for own, before in zip(indices, first, strict=False)]
    begins = [own[:-1] + before for own, before in zip(starts, numbers, strict=False)]
    return np.concatenate(moved), np.concatenate([*begins, numbers[-1:]])


def _added(
    rows: torch.Tensor, indices: np.ndarray, starts: np.ndarray, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """A sparse matrix as CSR rows, without `weights` of ones, times `rows` (n, C)."""
    if len(starts) == 1:
        return rows[:0]
    places, begins = (torch.from_numpy(own).to(rows.device) for own in (indices, starts))
    return functional.embedding_bag(
        places, rows, begins, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


@dataclass(frozen=True)
class SumPooling:
    """A pooling from the sums of features over regions.

    Arguments:
        of_sums: the pooled features (N, C x cells) of regions.
        pool_whole: the feature map (1, C, h, w) to the features of the whole photo, (1, C x cells).
        cells: pooled features per channel and region.
        fc6: see `RegionPooling.convert_fc6`.
    """

    of_sums: Callable[[Sums], torch.Tensor]
    pool_whole: Callable[[torch.Tensor], torch.Tensor]
    cells: int
    fc6: Callable[[torch.Tensor], torch.Tensor]

    needs_photo = False

    def inputs(self, channels: int, grid: int) -> int:
        return channels * self.cells

    def whole(self, network: HypothesisNetwork, source: torch.Tensor) -> torch.Tensor:
        return self.pool_whole(source)

    def pool(self, feature_maps: Sequence[torch.Tensor], shares: Sequence[Shares]) -> torch.Tensor:
        """Pooled features (N, C x cells) float32 of the regions of photos, photo after photo; see `sums_over`."""
        return self.of_sums(sums_over(feature_maps, shares))

    def chunks(
        self, network: HypothesisNetwork, source: torch.Tensor, regions: RegionProposals
    ) -> Iterator[torch.Tensor]:
        yield from parts(self.pool([source], [shares_of(regions, *source.shape[1:])]))

    def convert_fc6(self, weight: torch.Tensor) -> torch.Tensor | None:
        return self.fc6(weight)


def superpixel_weights(superpixels: np.ndarray, h: int, w: int) -> sparse.csr_array:
    """How much each feature cell contributes to the sum of features over each superpixel: `A = L B`.

    B (H*W, h*w) is bilinear upsampling of an (h, w) map to (H, W) with half-pixel centres (`F.interpolate` with
    align_corners=False), L (S, H*W) adds up the pixels of each superpixel. `A @ F` with cell features F (h*w, C)
    equals upsampling and then summing, without a (C, H, W) map.

    Arguments:
        superpixels: (H, W) integers 0..S-1.
    Returns (S, h*w) float32. Costs 4 H W additions: 6 ms at 400x300. A large photo is gone through in bands, each of so
    few rows of cells that a band has BAND numbers.
    """
    (top, top_share), (low, low_share) = _bilinear(superpixels.shape[0], h)
    across, count = _bilinear(superpixels.shape[1], w), int(superpixels.max()) + 1
    high = max(1, BAND // (count * w))
    parts = []
    for first in range(0, h, high):
        rows = np.flatnonzero((top >= first) & (top < first + high))
        if not len(rows):
            continue
        cells = min(high + 1, h - first)  # the pixels below a row of cells see the next one too
        labels = superpixels[rows].astype(np.int64) * (cells * w)
        sums = np.zeros(count * cells * w)
        for down, down_share in ((top[rows] - first, top_share[rows]), (low[rows] - first, low_share[rows])):
            for columns, share in across:
                places = labels + (down[:, None] * w + columns)
                sums += np.bincount(places.ravel(), np.outer(down_share, share).ravel(), len(sums))
        band = sparse.coo_array(sums.reshape(count, cells * w))
        parts.append((band.data, band.row, band.col + first * w))
    data, labelled, seen = (np.concatenate(part) for part in zip(*parts, strict=True))
    return sparse.csr_array((data, (labelled, seen)), (count, h * w)).astype(np.float32)


def _bilinear(pixels: int, cells: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The cell before each pixel of an axis with its share, and the cell behind it with its share, (pixels,) each.

    Half-pixel centres; the outer cells are extended to the edge.
    """
    position = np.maximum((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0)
    low = position.astype(np.int64)
    high = np.minimum(low + 1, cells - 1)
    return (low, 1 - (position - low)), (high, position - low)
