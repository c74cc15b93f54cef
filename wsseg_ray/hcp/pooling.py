"""Region features: crops of the photo (`warp`), RoIAlign (`roi`), means inside regions (`segment`, `context`)."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from wsseg_ray.hcp.trunk import full_precision
from wsseg_ray.proposals.regions import RegionProposals


def warp_crops(photo: torch.Tensor, boxes: np.ndarray, size: int) -> torch.Tensor:
    """Every box of a photo, resized bilinearly to a square, its aspect ignored.

    Costs 12 size^2 bytes a box (0.6 MB at 224): hand over the boxes in chunks.

    Arguments:
        photo: (3, H, W) normalised.
        boxes: (N, 4) px: x0, y0, x1, y1, the end exclusive.
    Returns (N, 3, size, size).
    """
    return _align(photo, boxes, size, scale=1.0, samples=1)


def pool_boxes(feature_map: torch.Tensor, boxes: np.ndarray, stride: int, grid: int) -> torch.Tensor:
    """RoIAlign: a grid of cells a box, each the mean of 2x2 bilinear samples of the photo's feature map.

    Arguments:
        feature_map: (C, h, w).
        boxes: (N, 4) photo px: x0, y0, x1, y1, the end exclusive.
        stride: photo pixels a feature cell.
        grid: cells a side.
    Returns (N, C, grid, grid); gradients flow to the feature map.
    """
    return _align(feature_map, boxes, grid, scale=1 / stride, samples=2)


def superpixel_weights(superpixels: np.ndarray, h: int, w: int) -> sparse.csr_array:
    """How much every feature cell contributes to the sum of features over every superpixel: `A = L B`.

    B (H*W, h*w) is bilinear upsampling of an (h, w) map to (H, W) with half-pixel centres (`F.interpolate` with
    align_corners=False), L (S, H*W) adds up the pixels of every superpixel. `A @ F` with cell features F (h*w, C)
    equals upsampling and then summing, without a (C, H, W) map.

    Arguments:
        superpixels: (H, W) integers 0..S-1.
    Returns (S, h*w) float32. Costs 15 ms at 500x375.
    """
    height, width = superpixels.shape
    bilinear = sparse.kron(_bilinear(height, h), _bilinear(width, w), format="csr")
    labels = superpixels.ravel()
    ends = np.cumsum(np.bincount(labels))
    pixels = np.argsort(labels, kind="stable")
    sums = sparse.csr_array((np.ones(labels.size), pixels, np.concatenate([[0], ends])), shape=(len(ends), labels.size))
    return (sums @ bilinear).astype(np.float32)


def pool_segments(feature_map: torch.Tensor, regions: RegionProposals) -> torch.Tensor:
    """Mean of the upsampled feature map inside every proposal: `(M (A F)) / (M a)`, Section 3 of the design.

    Computed as `((M A) / (M a)) F`: the bracket is a plain matrix that any device multiplies and gradients pass.
    Costs 4 N h w bytes and one product of (N, h*w) with (h*w, C): 35 ms for 2,000 proposals on VGG-16's 31x23 cells.

    Arguments:
        feature_map: (C, h, w) of the whole photo.
    Returns (N, C) float32; gradients flow to the feature map.
    """
    cells = superpixel_weights(regions.superpixels, *feature_map.shape[1:])
    return _mean(feature_map, (regions.membership @ cells).toarray(), regions.region_areas)


def pool_context(feature_map: torch.Tensor, regions: RegionProposals) -> torch.Tensor:
    """`pool_segments`, and by how much it differs from the mean over the rest of the photo.

    A part of an object and a field around it may score as high as the object; their surroundings tell them apart. The
    idea is ContextLocNet's contrast (Kantorov et al., ECCV 2016), on regions. A region that is the whole photo has no
    surroundings: its difference is zero.

    Arguments as `pool_segments`; costs its product twice.
    Returns (N, 2 C) float32: means, then differences; gradients flow to the feature map.
    """
    cells = superpixel_weights(regions.superpixels, *feature_map.shape[1:])
    sums, areas = (regions.membership @ cells).toarray(), regions.region_areas
    rest = regions.areas.sum() - areas
    inside = _mean(feature_map, sums, areas)
    outside = _mean(feature_map, cells.sum(axis=0) - sums, np.maximum(rest, 1))
    alone = torch.from_numpy(rest == 0).to(inside.device)
    return torch.cat([inside, (inside - outside).masked_fill(alone[:, None], 0)], dim=1)


def _mean(feature_map: torch.Tensor, sums: np.ndarray, areas: np.ndarray) -> torch.Tensor:
    """Mean features of N regions from how much every cell contributes to their sums (N, h*w), and their pixels (N,)."""
    weights = torch.from_numpy(np.divide(sums, areas[:, None], dtype=np.float32)).to(feature_map.device)
    with full_precision(feature_map.device):  # a mean of bfloat16 weights is off by up to 0.4 %
        return weights @ feature_map.float().flatten(1).T


def _align(image: torch.Tensor, boxes: np.ndarray, size: int, scale: float, samples: int) -> torch.Tensor:
    from torchvision.ops import roi_align  # with all of torchvision, a second and a half: here alone

    image = image.float()
    corners = torch.as_tensor(np.array(boxes, np.float32), device=image.device)
    return roi_align(image[None], [corners], size, spatial_scale=scale, sampling_ratio=samples, aligned=True)


def _bilinear(pixels: int, cells: int) -> sparse.csr_array:
    """Bilinear weights along one axis, (pixels, cells): half-pixel centres, the outer cells extended to the edge."""
    position = np.maximum((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0)
    low = position.astype(np.int64)
    high = np.minimum(low + 1, cells - 1)
    rows = np.tile(np.arange(pixels), 2)
    share = np.concatenate([1 - (position - low), position - low])
    return sparse.csr_array((share, (rows, np.concatenate([low, high]))), shape=(pixels, cells))
