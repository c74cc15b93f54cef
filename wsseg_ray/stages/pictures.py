"""Photos that the report shows, for the stages that have pictures."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from wsseg_ray.engine.stage import Job
from wsseg_ray.stages.rows import truth_of
from wsseg_ray.tables import IMAGES, ImageRow, Row, Table

STRIPS = 7  # photos of each split; a prime, so that data sets that go round the classes show them all

R = TypeVar("R", bound=Row)


def chosen(job: Job, table: Table[R], split: str) -> list[tuple[str, ImageRow, R]]:
    """Photos to show, evenly spread, those with a mask first: shard, row of `images`, row of the table."""
    found = []
    for shard in job.run.shards(table.folder, split):
        images = job.run.read_good(job.table(IMAGES), shard)
        found += [(shard, images[image_id]) for image_id in job.run.read_good(table, shard, [])]
    found = [entry for entry in found if entry[1].mask_uri] or found
    shown = [found[i * len(found) // STRIPS] for i in range(STRIPS)] if len(found) > STRIPS else found
    return [(shard, image, job.run.read_good(table, shard)[image.image_id]) for shard, image in shown]


def truth(job: Job, image: ImageRow) -> np.ndarray | None:
    """The true mask (H, W) of a photo, or None."""
    return truth_of(job, image) if image.mask_uri else None
