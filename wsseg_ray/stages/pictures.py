"""Photos that the report shows, for the stages that have pictures."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from wsseg_ray.console import say
from wsseg_ray.engine.stage import Job
from wsseg_ray.stages.rows import photo_of, truth_of
from wsseg_ray.tables import IMAGES, ImageRow, Row, Table

STRIPS = 7  # photos of each split; a prime, so that data sets that go round the classes show them all
SHARDS = 64  # out of which photos are chosen: the driver looks at each photo of these shards

R = TypeVar("R", bound=Row)


def chosen(job: Job, table: Table[R], split: str) -> list[tuple[str, ImageRow, R]]:
    """Photos to show, evenly spread, those with a mask first: shard, row of `images`, row of the table."""
    found = []
    for shard in some_shards(job, table, split):
        images = job.run.read_good(job.table(IMAGES), shard)
        found += [(shard, images[image_id]) for image_id in job.run.read_good(table, shard, [])]
    found = [entry for entry in found if entry[1].mask_uri] or found
    shown = [found[i * len(found) // STRIPS] for i in range(STRIPS)] if len(found) > STRIPS else found
    return [(shard, image, job.run.read_good(table, shard)[image.image_id]) for shard, image in shown]


def some_shards(job: Job, table: Table[Any], split: str) -> list[str]:
    """At most SHARDS shards of a table, evenly spread."""
    shards = job.run.shards(table.folder, split)
    return shards[:: -(-len(shards) // SHARDS) or 1]


def files_of(job: Job, image: ImageRow) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The photo (H, W, 3) and its true mask (H, W), if it has one; None, with a message, where unreadable now."""
    try:
        return photo_of(job, image), truth_of(job, image) if image.mask_uri else None
    except (OSError, ValueError) as error:
        say(f"the report leaves out {image.image_id}: {error}")
        return None
