"""Stage `images`: every photo is decoded once, and the table that all others follow is written.

A photo that cannot be decoded, or that kills the process that tries, goes no further than this: trainings, where it
would cost more, never meet it.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

from wsseg_ray.datasets import Photo
from wsseg_ray.datasets.pixels import photo_size, read_photo
from wsseg_ray.datasets.spool import digest_of
from wsseg_ray.engine.resources import PIXELS_FILE
from wsseg_ray.engine.stage import Job, Runner, Stage, Step, Work
from wsseg_ray.sources import digest, read_bytes
from wsseg_ray.stages import listing
from wsseg_ray.tables import IMAGES, MAX_SHARD_PIXELS, SHARD_ROWS, ImageRow

OPENED = 16  # photos whose size is looked at before the shards are cut


def _run(job: Job, runner: Runner) -> int:
    """Write `images/` in shards named `train-00000`, `val-00000`, ...; returns the photos done now."""
    shards = list(listing.names(listing.write(job, _largest(job))))
    return runner.map_shards(job, STAGE, _work(job), shards)


def _largest(job: Job) -> int:
    """Pixels of the largest of some photos, evenly spread. It is written down: a run that goes on cuts the same shards.

    Nothing is opened where `dataset.max_side` says that no shard can have too many pixels.
    """
    known = job.run.read_json(IMAGES.folder, PIXELS_FILE)
    if known is None:
        most = job.recipe.dataset.max_side
        known = most**2 if most else MAX_SHARD_PIXELS
        if known * SHARD_ROWS > MAX_SHARD_PIXELS:
            count = sum(not photo.error for photo in job.listing.photos)
            usable = (photo for photo in job.listing.photos if not photo.error)
            some = islice(usable, 0, None, max(1, count // OPENED))
            known = max((_pixels(photo, most) for photo in some), default=0)
        job.run.write_json(known, IMAGES.folder, PIXELS_FILE)
    return known


def _pixels(photo: Photo, max_side: int | None) -> int:
    try:
        return math.prod(photo_size(read_bytes(photo.uri), max_side))
    except (OSError, ValueError):  # it is recorded as failed when its turn comes
        return 0


def _work(job: Job) -> Work[ImageRow]:
    return Work(IMAGES, listing.read, (Step(_look, ImageRow),))


def _look(job: Job, row: ImageRow) -> ImageRow:
    data = read_bytes(row.uri)
    row.height, row.width = read_photo(data, job.recipe.dataset.max_side).shape[:2]
    row.digest = digest(data)
    return row


def _metrics(job: Job) -> dict[str, Any]:
    counts = dict.fromkeys(("train", "val", "single_label", "train_with_masks"), 0)
    for row in job.run.rows(IMAGES, ["error", "split", "labels", "mask_uri"]):
        if not row.error:
            train = row.split == "train"
            counts[row.split] += 1
            counts["single_label"] += train and len(row.labels) == 1
            counts["train_with_masks"] += train and bool(row.mask_uri)
    return {"data": counts}


STAGE = Stage(
    name="images",
    reads=(),
    writes=IMAGES.folder,
    run=_run,
    settings=lambda recipe: ["dataset.max_side"],
    also=lambda job: [job.classes, job.listing.mask_values, digest_of(job.listing.photos)],
    covers=("dataset",),
    table=IMAGES,
    work=_work,
    split="all",
    metrics=_metrics,
)
