"""Region proposals as superpixel algebra.

A photo's proposals are a label map `superpixels` (H, W) with values 0..S-1 and a sparse 0/1 matrix `membership`
M (N, S): proposal n contains superpixel s. `a` (S,) are the areas of the superpixels. Areas, boxes, IoUs, maps and
masks of all proposals are then sparse products; no dense mask of a proposal is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from scipy import ndimage, sparse

MAX_SUPERPIXELS = 65536  # labels are stored as uint16


@dataclass(frozen=True)
class RegionProposals:
    """The proposals of one photo, best first.

    Arguments:
        superpixels: (H, W) uint16, every value of 0..S-1 occurs.
        membership: (N, S) CSR matrix of 0 and 1; row n lists the superpixels of proposal n. No row is empty.

    Raises ValueError where the two do not fit together.

    Two proposals over three superpixels of a photo of 2 x 3 pixels:

    >>> membership = sparse.csr_array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> regions = RegionProposals(np.array([[0, 0, 1], [2, 2, 1]]), membership)
    >>> regions.region_areas.tolist(), regions.boxes.tolist()
    ([4, 2], [[0, 0, 3, 2], [0, 1, 2, 2]])
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
        membership = sparse.csr_array(self.membership, dtype=np.float32, copy=True)  # do not change the caller's
        membership.sum_duplicates()
        membership.eliminate_zeros()
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
        return label_boxes(self.superpixels)

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

        >>> both, left = [1.0, 1.0], [1.0, 0.0]
        >>> RegionProposals(np.array([[0, 1, 1, 1]]), sparse.csr_array([both, left])).iou().tolist()
        [[1.0, 0.25], [0.25, 1.0]]
        """
        weighted = self.membership.astype(np.float64) * self.areas[None, :]
        intersection = (sparse.csr_array(weighted) @ self.membership.T.astype(np.float64)).toarray()
        area = self.region_areas.astype(np.float64)
        return intersection / (area[:, None] + area[None, :] - intersection)

    def mean_inside(self, values: np.ndarray) -> np.ndarray:
        """Mean over the pixels of every proposal, of a map that is constant in each superpixel: `(M (a v)) / (M a)`.

        Arguments:
            values: v, (S,) or (S, C).
        Returns (N,) or (N, C) float64.

        >>> both, left = [1.0, 1.0], [1.0, 0.0]
        >>> regions = RegionProposals(np.array([[0, 1, 1, 1]]), sparse.csr_array([both, left]))
        >>> regions.mean_inside(np.array([1.0, 0.0])).tolist()
        [0.25, 1.0]
        """
        areas = self.areas.astype(np.float64)
        weighted = areas * values if values.ndim == 1 else areas[:, None] * values
        total = self.membership.astype(np.float64) @ weighted
        return total / (self.region_areas if values.ndim == 1 else self.region_areas[:, None])

    def vote(self, kept: np.ndarray) -> np.ndarray:
        """Share of the kept proposals that contain each superpixel: the localization map of Sec. 3.3.1, (S,) float64.

        Arguments:
            kept: indices or a boolean mask of proposals; without any, the result is zeros.

        >>> both, left = [1.0, 1.0], [1.0, 0.0]
        >>> RegionProposals(np.array([[0, 1]]), sparse.csr_array([both, left])).vote(np.array([0, 1])).tolist()
        [1.0, 0.5]
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

    def resized(self, height: int, width: int) -> tuple[RegionProposals, np.ndarray]:
        """The proposals on a photo of another size: nearest neighbour at the pixel centres, `floor((i + 1/2) H / h)`.

        Superpixels without pixels and proposals without superpixels are dropped; the others keep their order.
        Costs h*w.

        Returns the proposals and the indices of the kept proposals, (N',) int64.
        Raises ValueError where height or width is less than one pixel.
        """
        if height < 1 or width < 1:
            raise ValueError(f"proposals cannot be resized to {height}x{width} pixels")
        old_height, old_width = self.superpixels.shape
        rows = (2 * np.arange(height) + 1) * old_height // (2 * height)
        columns = (2 * np.arange(width) + 1) * old_width // (2 * width)
        kept_superpixels, superpixels = np.unique(self.superpixels[rows[:, None], columns], return_inverse=True)
        membership = self.membership[:, kept_superpixels]
        kept = np.flatnonzero(np.diff(membership.indptr))
        return RegionProposals(superpixels.reshape(height, width), membership[kept]), kept


def label_boxes(labels: np.ndarray) -> np.ndarray:
    """Bounding box of every label, (S, 4) int64: x0, y0, x1, y1, the end exclusive.

    Arguments:
        labels: (H, W) integers, every value of 0..S-1 occurs.
    """
    extents = ndimage.find_objects(labels.astype(np.int32) + 1)
    return np.array([[x.start, y.start, x.stop, y.stop] for y, x in extents], np.int64)


def from_flat(superpixels: np.ndarray, indptr: np.ndarray, indices: np.ndarray) -> RegionProposals:
    """The proposals of a row of a table.

    Arguments:
        superpixels: (H, W) integers, every value of 0..S-1 occurs.
        indptr, indices: (N+1,) and (nnz,) integers, the CSR rows of `membership`.

    Raises ValueError where the arrays do not fit together.
    """
    superpixel_count = int(superpixels.max(initial=0)) + 1
    indptr, indices = np.asarray(indptr), np.asarray(indices)
    membership = sparse.csr_array(
        (np.ones(len(indices), np.float32), indices, indptr), shape=(len(indptr) - 1, superpixel_count)
    )
    membership.check_format(full_check=True)
    return RegionProposals(superpixels, membership)


def from_masks(masks: Iterable[np.ndarray]) -> RegionProposals:
    """Masks that may overlap, as proposals. Two pixels are in one superpixel when the same masks cover both.

    Empty masks are dropped.

    Arguments:
        masks: N masks (H, W) bool, best first: an array (N, H, W) or an iterable, read once.
    Costs one pass over the photo per mask and one sort of the pixels per 32 masks; 40 bytes per pixel for any N.
    Raises ValueError where there is no mask, where sizes differ, and where there would be more than 65,536 superpixels.
    """
    masks = iter(masks)
    chunk = list(islice(masks, 32))
    if not chunk:
        raise ValueError("no masks")
    shape = chunk[0].shape
    cells = np.zeros(chunk[0].size, np.int64)
    patterns = np.zeros((1, 0), "<u4")  # (S, N / 32): which masks cover each superpixel, 32 masks per word
    while chunk:
        word = np.zeros(cells.size, np.int64)
        for bit, mask in enumerate(chunk):
            if mask.shape != shape:
                raise ValueError(f"a mask of {mask.shape} among masks of {shape}")
            word |= mask.ravel().astype(np.int64) << bit
        values, cells = np.unique(cells << 32 | word, return_inverse=True)
        if len(values) > MAX_SUPERPIXELS:
            raise ValueError(f"the masks divide the photo into more than {MAX_SUPERPIXELS} superpixels")
        patterns = np.hstack([patterns[values >> 32], (values & 0xFFFFFFFF).astype("<u4")[:, None]])
        chunk = list(islice(masks, 32))
    covered = np.unpackbits(patterns.view(np.uint8), axis=1, bitorder="little").T  # (N padded to 32, S)
    membership = sparse.csr_array(covered[covered.any(axis=1)], dtype=np.float32)
    return RegionProposals(cells.reshape(shape), membership)
