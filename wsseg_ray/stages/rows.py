"""Rows of the tables as the objects that kernels take."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsseg_ray.proposals.regions import RegionProposals, from_flat


def superpixels_of(row: dict[str, Any]) -> np.ndarray:
    """The superpixel map (H, W) uint16 of a row of `proposals`."""
    return np.frombuffer(row["superpixels"], "<u2").reshape(row["height"], row["width"])


def regions_of(row: dict[str, Any]) -> RegionProposals:
    """The proposals of a row of `proposals`."""
    return from_flat(superpixels_of(row), row["indptr"], row["indices"])
