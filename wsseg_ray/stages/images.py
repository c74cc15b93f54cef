"""Stage `images`: every photo is decoded once, and the table that all others follow is written.

A photo that cannot be decoded, or kills the process that tries, goes no further than this: trainings, where it would
cost more, never meet it.
"""

from __future__ import annotations

from dataclasses import asdict

from wsseg_ray.datasets import Photo
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.rows import add_photo
from wsseg_ray.stages.shards import Row, map_shards
from wsseg_ray.tables import plan_shards

TABLE = "images"


def run(job: Job) -> int:
    """Write `images/` in shards named `train-00000`, `val-00000`, ...; returns the photos done now."""
    shards = {}
    for split in ("train", "val"):
        photos = [photo for photo in job.listing.photos if photo.split == split]
        for number, members in enumerate(plan_shards(len(photos))):
            shards[f"{split}-{number:05d}"] = [photos[i] for i in members]
    return map_shards(job, "images", TABLE, shards, _rows, _look)


def _rows(job: Job, shard: str, photos: list[Photo]) -> list[Row]:
    return [asdict(photo) for photo in photos]


def _look(job: Job, row: Row) -> Row:
    height, width = add_photo(job, row)["photo"].shape[:2]
    return {**row, "height": height, "width": width}
