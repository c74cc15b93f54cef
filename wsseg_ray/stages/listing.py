"""The photos of a run as stage `images` is given them: files in its folder, from which each task reads its own shards.

The driver writes them once, a piece at a time. So the names of all photos are never in its memory, nor sent by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby, islice

import numpy as np

from wsseg_ray.datasets import Photo
from wsseg_ray.engine.stage import Job
from wsseg_ray.tables import IMAGES, ImageRow, shard_size

FOLDER = "listing"
SHARDS = "shards.json"  # how many each split has; written last
SHARDS_PER_FILE = 64


def write(job: Job, pixels: int) -> dict[str, int]:
    """Write the job's photos in shards, if they are not there; returns the number of shards of each split.

    Arguments:
        pixels: of the largest photo: see `tables.shard_size`.
    Costs about 40 microseconds per photo, and the memory of SHARDS_PER_FILE shards.
    """
    known: dict[str, int] | None = job.run.read_json(IMAGES.folder, FOLDER, SHARDS)
    if known is not None:
        return known
    counts = {"train": 0, "val": 0}
    for photo in job.listing.photos:
        counts[photo.split] += 1
    found = {"train": 0, "val": 0}
    for split, photos in groupby(job.listing.photos, lambda photo: photo.split):
        for number, groups in enumerate(_files(photos, shard_size(counts[split], pixels))):
            job.run.write_groups(ImageRow, groups, IMAGES.folder, FOLDER, _file(split, number))
            found[split] += len(groups)
    job.run.write_json(found, IMAGES.folder, FOLDER, SHARDS)
    return found


def read(job: Job, shard: str) -> list[ImageRow]:
    """The photos of a shard of the table `images`, before any was opened. Costs the reading of one row group."""
    split, _, number = shard.partition("-")
    file, group = divmod(int(number), SHARDS_PER_FILE)
    return job.run.read_group(ImageRow, group, IMAGES.folder, FOLDER, _file(split, file))


def names(shards: dict[str, int]) -> Iterator[str]:
    """The names of all shards: `train-00000`, ..., `val-00000`, ..."""
    return (f"{split}-{number:05d}" for split, count in shards.items() for number in range(count))


def _file(split: str, number: int) -> str:
    return f"{split}-{number:05d}.parquet"


def _files(photos: Iterable[Photo], size: int) -> Iterator[list[list[ImageRow]]]:
    """The shards of each file."""
    rest = iter(photos)
    while rows := [_row(photo) for photo in islice(rest, size * SHARDS_PER_FILE)]:
        yield [rows[start : start + size] for start in range(0, len(rows), size)]


def _row(photo: Photo) -> ImageRow:
    return ImageRow(**{**asdict(photo), "labels": np.array(photo.labels, np.int32)})
