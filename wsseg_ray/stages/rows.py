"""Rows that travel between the steps of a stage, and rows of the tables as the objects that kernels take."""

# ruff: noqa: RUF009 (a column is a dataclass field with its type)

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from wsseg_ray.datasets.pixels import read_mask, read_photo
from wsseg_ray.engine.stage import Job
from wsseg_ray.proposals.regions import RegionProposals, from_flat
from wsseg_ray.sources import digest, read_bytes
from wsseg_ray.tables import IMAGES, FeatureRow, ImageRow, ProposalRow, array, number, text


@dataclass
class PhotoRow(ImageRow):
    """A row of `images`, with the photo once it is decoded."""

    photo: np.ndarray = array("uint8", ("height", "width", 3), "(H, W, 3) RGB, after dataset.max_side")


@dataclass
class SeenRow(PhotoRow, FeatureRow):
    """A photo with its stored features, if any."""


@dataclass
class RegionsRow(ProposalRow, FeatureRow):
    """A row of `proposals` with the photo, or its stored features; of a val photo the regions are empty."""

    uri: str = text("where the photo lies")
    digest: str = text("as in ImageRow")
    split: str = text("train or val")
    labels: np.ndarray = array("int32", (-1,), "(K,) the photo's classes")
    photo: np.ndarray = array("uint8", ("height", "width", 3), "(H, W, 3) RGB, after dataset.max_side")


@dataclass
class DrawnRow(PhotoRow):
    """A photo with what networks draw in it: boundaries, at the working size of the proposals, and SAM's masks."""

    rows: int = number("int32", "pixels")
    columns: int = number("int32", "pixels")
    boundary: np.ndarray = array("float32", ("rows", "columns"), "(h, w) in 0..1; empty without proposals.backbone")
    quality: np.ndarray = array("float32", (-1,), "(n,) of each of SAM's masks, in 0..1")
    masks: np.ndarray = array("uint8", (-1,), "(n H W / 8,) SAM's masks as bits")


class HasRegions(Protocol):
    """A row with the regions of a photo, as `ProposalRow` has them."""

    superpixels: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray


class HasFile(Protocol):
    """A row that says where the photo lies, as `ImageRow` does."""

    image_id: str
    uri: str
    digest: str


class HasMask(Protocol):
    """A row that says where the true mask lies, as `ImageRow` does."""

    mask_uri: str
    height: int
    width: int


P = TypeVar("P", PhotoRow, SeenRow, RegionsRow)


def add_photo(job: Job, row: P) -> P:
    """The row with its photo; see `photo_of`."""
    row.photo = photo_of(job, row)
    return row


def photo_of(job: Job, row: HasFile) -> np.ndarray:
    """The photo of a row, decoded: (H, W, 3) uint8, after `dataset.max_side`.

    Raises ValueError or OSError where it cannot be decoded, or is not the photo that stage `images` saw.
    """
    return read_photo(file_of(row), job.recipe.dataset.max_side)


def file_of(row: HasFile) -> bytes:
    """The bytes of a row's photo. Raises ValueError where they are not those that stage `images` saw."""
    data = read_bytes(row.uri)
    if row.digest and digest(data) != row.digest:
        raise ValueError(
            f"{row.image_id}: the photo was changed since stage images, but the stored regions and features are of the "
            "old photo; put the old photo back, or start again in another run directory"
        )
    return data


def photo_rows(job: Job, shard: str) -> list[PhotoRow]:
    """The photos of a shard, for `add_photo`."""
    return [PhotoRow(**vars(row)) for row in job.run.read_good(job.table(IMAGES), shard).values()]


def regions_of(row: HasRegions) -> RegionProposals:
    """The proposals of a row."""
    return from_flat(row.superpixels, row.indptr, row.indices)


def truth_of(job: Job, image: HasMask) -> np.ndarray:
    """The true mask (H, W) uint8, 255 for what does not count, of a row that has one."""
    data, size = read_bytes(image.mask_uri), (image.height, image.width)
    return read_mask(data, *size, job.listing.mask_values, job.recipe.dataset.max_side)
