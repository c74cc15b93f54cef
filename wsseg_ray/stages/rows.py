"""Rows of the tables as the objects that kernels take."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsseg_ray.datasets.pixels import read_mask, read_photo
from wsseg_ray.proposals.regions import RegionProposals, from_flat
from wsseg_ray.stages.job import Job
from wsseg_ray.tables import read_bytes


def add_photo(job: Job, row: dict[str, Any]) -> dict[str, Any]:
    """A row that has a `uri` with its `photo` (H, W, 3), decoded. Raises ValueError or OSError where it cannot be."""
    return {**row, "photo": read_photo(read_bytes(row["uri"]), job.recipe.dataset.max_side)}


def superpixels_of(row: dict[str, Any]) -> np.ndarray:
    """The superpixel map (H, W) uint16 of a row of `proposals`."""
    return np.frombuffer(row["superpixels"], "<u2").reshape(row["height"], row["width"])


def regions_of(row: dict[str, Any]) -> RegionProposals:
    """The proposals of a row of `proposals`."""
    return from_flat(superpixels_of(row), row["indptr"], row["indices"])


def truth_of(job: Job, image: dict[str, Any]) -> np.ndarray:
    """The true mask (H, W) uint8, 255 for what does not count, of a row of `images` that has one."""
    data, size = read_bytes(image["mask_uri"]), (image["height"], image["width"])
    return read_mask(data, *size, job.listing.mask_values, job.recipe.dataset.max_side)
