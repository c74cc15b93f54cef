"""The photos as stage `images` is given them, in files."""

import math
from dataclasses import replace

import pytest

from tests.runs import empty_job
from wsseg_ray.datasets import Listing, Photo
from wsseg_ray.stages import listing
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import shard_size


def job_of(tmp_path, train: int, val: int):
    photos = [Photo(f"t{n:05d}", f"/t{n}.jpg", (n % 2, 2), "train", "/m.png" * (n % 3)) for n in range(train)]
    photos += [Photo(f"v{n:05d}", "", (), "val", error="missing") for n in range(val)]
    return replace(empty_job(tmp_path), listing=Listing(["a", "b", "c"], [1, 2, 3], photos))


@pytest.mark.parametrize(("train", "val"), [(1, 0), (5, 3), (10_000, 70)])
def test_every_photo_is_in_one_shard(tmp_path, train, val):
    job = job_of(tmp_path, train, val)
    shards = listing.write(job, 0)
    assert shards == {"train": math.ceil(train / shard_size(train)), "val": math.ceil(val / shard_size(val))}
    found = [(shard, row) for shard in listing.names(shards) for row in listing.read(job, shard)]
    for (shard, row), photo in zip(found, job.listing.photos, strict=True):
        assert shard.startswith(photo.split) and row.split == photo.split
        assert (row.image_id, row.uri, tuple(row.labels)) == (photo.image_id, photo.uri, photo.labels)
        assert (row.mask_uri, row.error) == (photo.mask_uri, photo.error)


def test_it_is_written_once(tmp_path, monkeypatch):
    job = job_of(tmp_path, 5, 1)
    first = listing.write(job, 0)
    monkeypatch.setattr(RunDirectory, "write_bytes", lambda *_: pytest.fail("written again"))
    assert listing.write(job, 0) == first
    assert job.run.shards("images") == [], "the listing is no shard of the table"


def test_large_photos_are_in_small_shards(tmp_path):
    assert listing.write(job_of(tmp_path, 6, 0), 12_000_000) == {"train": 3, "val": 0}
