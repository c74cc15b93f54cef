"""Region proposals as superpixel algebra.

A photo's proposals are a label map `superpixels` (H, W) with values 0..S-1 and a sparse 0/1 matrix `membership`
M (N, S): proposal n contains superpixel s. With the areas `a` (S,), areas, boxes, IoUs, maps and masks of all
proposals are sparse products; no dense mask of a proposal is ever needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

MAX_SUPERPIXELS = 65536  # labels are stored as uint16


@dataclass(frozen=True)
class RegionProposals:
    """The proposals of one photo, best first.

    Arguments:
        superpixels: (H, W) uint16, every value of 0..S-1 occurs.
        membership: (N, S) CSR matrix of 0 and 1; row n lists the superpixels of proposal n. No row is empty.

    Raises ValueError where the two do not fit together.
    """

    superpixels: np.ndarray
    membership: sparse.csr_array

    def __post_init__(self) -> None:
        if self.superpixels.ndim != 2 or self.superpixels.size == 0:
            raise ValueError(f"superpixels must be a non-empty (H, W) map, got shape {self.superpixels.shape}")
        if not np.issubdtype(self.superpixels.dtype, np.integer):
            raise ValueError(f"superpixels must be integers, got {self.superpixels.dtype}")
        if int(self.superpixels.min()) < 0 or int(self.superpixels.max()) >= MAX_SUPERPIXELS:
            raise ValueError(f"superpixel labels must lie in 0..{MAX_SUPERPIXELS - 1}")
        object.__setattr__(self, "superpixels", np.ascontiguousarray(self.superpixels, dtype=np.uint16))
        if self.membership.shape[1] != len(self.areas) or (self.areas == 0).any():
            raise ValueError(
                f"membership has {self.membership.shape[1]} columns for superpixels 0..{len(self.areas) - 1}, "
                f"{int((self.areas == 0).sum())} of them without a pixel"
            )
        membership = sparse.csr_array(self.membership, dtype=np.float32)
        membership.sum_duplicates()
        membership.data[:] = 1
        if len(membership.indptr) > 1 and (np.diff(membership.indptr) == 0).any():
            raise ValueError("a proposal without a superpixel")
        object.__setattr__(self, "membership", membership)

    def __len__(self) -> int:
        return self.membership.shape[0]

    @cached_property
    def areas(self) -> np.ndarray:
        """Pixels of every superpixel, (S,) int64."""
        return np.bincount(self.superpixels.ravel())

    @cached_property
    def region_areas(self) -> np.ndarray:
        """Pixels of every proposal, `M a`, (N,) int64. Costs nnz(M)."""
        return (self.membership @ self.areas.astype(np.float64)).astype(np.int64)

    @cached_property
    def superpixel_boxes(self) -> np.ndarray:
        """Bounding box of every superpixel, (S, 4) int64: x0, y0, x1, y1, the end exclusive."""
        labels = self.superpixels.ravel()
        ys, xs = np.divmod(np.arange(labels.size), self.superpixels.shape[1])
        boxes = np.empty((len(self.areas), 4), np.int64)
        for column, values, reduce, start in (
            (0, xs, np.minimum, labels.size),
            (1, ys, np.minimum, labels.size),
            (2, xs + 1, np.maximum, 0),
            (3, ys + 1, np.maximum, 0),
        ):
            extreme = np.full(len(self.areas), start, np.int64)
            reduce.at(extreme, labels, values)
            boxes[:, column] = extreme
        return boxes

    @cached_property
    def boxes(self) -> np.ndarray:
        """Bounding box of every proposal, (N, 4) int64: x0, y0, x1, y1, the end exclusive. Costs nnz(M)."""
        if len(self) == 0:
            return np.empty((0, 4), np.int64)
        rows = self.superpixel_boxes[self.membership.indices]
        starts = self.membership.indptr[:-1]
        return np.hstack([np.minimum.reduceat(rows[:, :2], starts), np.maximum.reduceat(rows[:, 2:], starts)])

    def iou(self) -> np.ndarray:
        """IoU of all pairs of proposals: `I = M diag(a) M^T`, then `I / (A_i + A_j - I)`.

        Returns (N, N) float64. Costs one sparse product and 8 N^2 bytes.
        """
        weighted = self.membership.astype(np.float64) * self.areas[None, :]
        intersection = (sparse.csr_array(weighted) @ self.membership.T.astype(np.float64)).toarray()
        area = self.region_areas.astype(np.float64)
        return intersection / (area[:, None] + area[None, :] - intersection)

    def mean_inside(self, values: np.ndarray) -> np.ndarray:
        """Pixel mean of a superpixel-constant map inside every proposal: `(M (a v)) / (M a)`.

        Arguments:
            values: (S,) or (S, C).
        Returns (N,) or (N, C) float64.
        """
        areas = self.areas.astype(np.float64)
        weighted = areas * values if values.ndim == 1 else areas[:, None] * values
        total = self.membership.astype(np.float64) @ weighted
        return total / (self.region_areas if values.ndim == 1 else self.region_areas[:, None])

    def vote(self, kept: np.ndarray) -> np.ndarray:
        """Share of the kept proposals that contain each superpixel: the localization map of Sec. 3.3.1, (S,) float64.

        Arguments:
            kept: indices or a boolean mask of proposals; none kept gives zeros.
        """
        rows = self.membership[kept]
        if rows.shape[0] == 0:
            return np.zeros(len(self.areas))
        return np.asarray(rows.sum(axis=0, dtype=np.float64)).ravel() / rows.shape[0]

    def union(self, chosen: np.ndarray) -> np.ndarray:
        """Superpixels covered by at least one of the chosen proposals, (S,) bool."""
        covered = np.zeros(len(self.areas), bool)
        covered[self.membership[chosen].indices] = True
        return covered

    def mask(self, index: int) -> np.ndarray:
        """Dense mask of one proposal, (H, W) bool. For pictures and tests."""
        return self.union(np.array([index]))[self.superpixels]

    def top(self, count: int) -> RegionProposals:
        """The first `count` proposals over the same superpixels."""
        return RegionProposals(self.superpixels, self.membership[:count])


def from_masks(masks: np.ndarray) -> RegionProposals:
    """Arbitrary overlapping masks as proposals: the photo is split into the cells that their overlaps induce.

    Two pixels share a cell when the same masks cover both. Empty masks are dropped.

    Arguments:
        masks: (N, H, W) bool, best first.
    Costs N passes over the photo.
    Raises ValueError where the masks induce more than 65,536 cells.
    """
    masks = masks[masks.any(axis=(1, 2))]
    cells = np.zeros(masks.shape[1:], np.int64)
    for mask in masks:
        _, cells = np.unique(cells * 2 + mask, return_inverse=True)
        cells = cells.reshape(mask.shape)
    count = int(cells.max()) + 1
    if count > MAX_SUPERPIXELS:
        raise ValueError(f"{len(masks)} masks induce {count} cells, more than {MAX_SUPERPIXELS}")
    first = np.unique(cells, return_index=True)[1]
    membership = masks.reshape(len(masks), cells.size)[:, first]
    return RegionProposals(cells, sparse.csr_array(membership, dtype=np.float32))
