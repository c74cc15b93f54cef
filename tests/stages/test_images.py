"""The table that all others follow: sizes and digests of photos, cut into shards that fit into memory."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from tests.runs import by_name, empty_job
from wsseg_ray import tables
from wsseg_ray.datasets import Listing, Photo
from wsseg_ray.engine import resources
from wsseg_ray.engine.local import LocalRunner
from wsseg_ray.sources import digest
from wsseg_ray.stages import images
from wsseg_ray.tables import IMAGES


def photos_of(folder, sides: dict[str, tuple[int, int]]) -> list[Photo]:
    """Photos on disk, by name; width and height of each."""
    found = []
    for name, (width, height) in sides.items():
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "PNG")
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
        found.append(Photo(name, f"{folder}/{name}.png", (0,), "train"))
    return found


def job_of(folder, photos: list[Photo], *settings: str):
    job = empty_job(folder / "run", *settings)
    return type(job)(job.run, job.recipe, Listing(["x"], [1], photos))


def test_sizes_and_digests(tmp_path):
    photos = photos_of(tmp_path, {"a": (40, 30), "b": (20, 50)})
    job = job_of(tmp_path, photos, "dataset.max_side=25")
    assert images.STAGE.do(job, LocalRunner()) == 2
    rows = by_name(job.run, IMAGES)
    assert {name: (row.width, row.height) for name, row in rows.items()} == {"a": (25, 19), "b": (10, 25)}
    assert all(row.digest == digest((tmp_path / f"{name}.png").read_bytes()) for name, row in rows.items())


@pytest.mark.parametrize(
    ("max_side", "pixels", "shards"),
    [
        ("null", 300 * 200, [2, 2, 2, 2]),  # the largest of the photos that are opened
        ("100", 100 * 67, [4, 4]),  # the same after max_side
        ("16", 256, [4, 4]),  # a side of 16 px can make no shard too large: nothing is opened
    ],
)
def test_shards_of_large_photos_have_few(tmp_path, monkeypatch, max_side, pixels, shards):
    for module in (images, tables):
        monkeypatch.setattr(module, "MAX_SHARD_PIXELS", 2 * 300 * 200)
    sides = {f"{i}": (300, 200) if i == 4 else (20, 20) for i in range(8)}
    job = job_of(tmp_path, photos_of(tmp_path, sides), f"dataset.max_side={max_side}")
    opened = []
    real = images.photo_size
    monkeypatch.setattr(images, "photo_size", lambda *args: opened.append(1) or real(*args))
    images.STAGE.do(job, LocalRunner())
    assert resources.largest_photo(job.run) == pixels
    assert bool(opened) == (max_side != "16")
    assert [len(job.run.read_shard(IMAGES, shard)) for shard in job.run.shards("images")] == shards


def test_a_run_that_goes_on_cuts_the_same_shards(tmp_path, monkeypatch):
    """Also where a photo can no longer be opened, or another one can."""
    job = job_of(tmp_path, photos_of(tmp_path, {"a": (3000, 2000), "b": (20, 20)}), "dataset.max_side=null")
    images.STAGE.do(job, LocalRunner())
    monkeypatch.setattr(images, "_pixels", None)
    job.run.delete("images", "train-00000.parquet")
    images.STAGE.do(job, LocalRunner())
    assert resources.largest_photo(job.run) == math.prod((3000, 2000)) and len(by_name(job.run, IMAGES)) == 2


def test_a_photo_that_cannot_be_opened_has_no_size(tmp_path):
    job = job_of(tmp_path, [Photo("a", f"{tmp_path}/none.png", (0,), "train")], "dataset.max_side=null")
    assert images._largest(job) == 0
