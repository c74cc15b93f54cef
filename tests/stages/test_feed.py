"""What the trainers are fed: the order of training, whatever task is done first, and the kernels' targets."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch

from wsseg_ray.datasets.pixels import encode_mask, read_photo
from wsseg_ray.segmentation.models import grid_size
from wsseg_ray.segmentation.targets import crop_and_mirror, soft_target
from wsseg_ray.stages import feed
from wsseg_ray.stages.feed import OWN_LABELS, Step, target_kind
from wsseg_ray.stages.job import Job, open_run, photo_number
from wsseg_ray.stages.rows import superpixels_of
from wsseg_ray.tables import RunDirectory, read_bytes


@pytest.fixture(scope="module")
def job(tiny_run):
    return open_run(tiny_run[1].root)


def photos(job) -> list[tuple[str, str]]:
    return [
        (shard, i) for shard in job.run.shards("supervision") for i in sorted(job.run.read_good("supervision", shard))
    ]


def step(network: str, chosen: list[tuple[str, str]], index: int = 0) -> Step:
    return Step(network, 0, 3, index, chosen, len(chosen), False, 0)


def test_kinds_of_targets():
    kinds = {
        "AN_A": "maps",
        "SN_A_unrefined": "maps",
        "SN_B": "mask",
        "FULL": "truth",
        "CCNN": "labels",
        "CAM": "labels",
    }
    assert {name: target_kind(name, 0) for name in kinds} == kinds
    assert {target_kind(name, 1) for name in kinds} == {"own"}


def test_a_sample_is_what_the_kernels_make(job):
    chosen = photos(job)[:3]
    (row,) = feed.read_batches(job, {"step": np.array([pickle.dumps(step("AN_A", chosen))])})
    for place, (shard, image_id) in enumerate(chosen):
        image = job.run.read_good("images", shard)[image_id]
        own = job.run.read_good("supervision", shard)[image_id]
        rng = np.random.default_rng([0, photo_number(image_id), 3])
        crop = job.recipe.segmentation.crop
        cells = grid_size(job.recipe.segmentation.model, crop)
        photo, (over,), valid = crop_and_mirror(
            rng,
            read_photo(read_bytes(image["uri"])),
            [superpixels_of(job.run.read_good("proposals", shard)[image_id])],
            crop,
        )
        maps = own["maps"].reshape(len(own["labels"]), -1)
        target = soft_target(over, valid, maps, own["labels"], len(job.classes), cells, cells)
        assert np.array_equal(row["photos"][0][place], photo)
        assert np.array_equal(row["targets"][0][place], target)


def test_steps_come_in_order_with_all_kinds_mixed(job, cluster, monkeypatch):
    """More steps than a task takes and than a Dataset holds; a step of which this worker has no photo among them."""
    monkeypatch.setattr(feed, "STEPS_A_TASK", 2)
    monkeypatch.setattr(feed, "SPAN", 5)
    everything = photos(job)
    names = ["AN_A", "SN_B", "FULL", "CCNN"]
    steps = [step(names[n % 4], [everything[n], everything[n + 1]] if n != 3 else [], n) for n in range(8)]
    expected = list(feed.read_batches(job, {"step": np.array([pickle.dumps(s) for s in steps], object)}))
    found = list(feed.stream(job, iter(steps), torch.device("cpu")))
    assert [given.index for given, _, _ in found] == list(range(8))
    for (given, batch, waited), row in zip(found, expected, strict=True):
        assert len(batch.photos) == len(batch.numbers) == len(given.photos) and waited >= 0
        assert np.array_equal(batch.photos.numpy(), row["photos"][0])
        assert np.array_equal(batch.targets.numpy(), row["targets"][0])
    channels = [batch.targets.shape[1] for _, batch, _ in found]
    assert channels == [7, 1, 1, 1, 7, 1, 1, 7]  # classes and background, or a class a cell


def test_a_rival_is_shown_names_alone(job):
    shard, image_id = photos(job)[0]
    (row,) = feed.read_batches(job, {"step": np.array([pickle.dumps(step("CCNN", [(shard, image_id)]))])})
    labels = job.run.read_good("images", shard)[image_id]["labels"]
    shown = row["targets"][0][0].any(axis=(1, 2)).nonzero()[0]
    assert shown.tolist() == [0, *(labels + 1)]


def test_equal_crops_have_equal_numbers(job):
    chosen = photos(job)[:2]
    first, again, other = (
        next(feed.read_batches(job, {"step": np.array([pickle.dumps(s)])}))["numbers"][0]
        for s in (step("AN_A", chosen), step("SN_B", chosen), step("AN_A", chosen[::-1]))
    )
    assert np.array_equal(first, again) and np.array_equal(first, other[::-1]) and first.min() >= 0


def test_a_photo_that_was_not_labelled_again_counts_nowhere(job, tmp_path):
    shutil.copytree(job.run.root, tmp_path / "run")
    run = RunDirectory.at(str(tmp_path / "run"))
    (shard, good), *_ = chosen = [pair for pair in photos(job) if pair[0] == photos(job)[0][0]][:2]
    image = run.read_good("images", shard)[good]
    seen = {"networks": ["SN_B"], "labels": [encode_mask(np.full((image["height"], image["width"]), 2, np.uint8))]}
    rows = [{"image_id": good, **seen}, {"image_id": chosen[1][1], "error": "failed"}]
    run.write_shard(f"{OWN_LABELS}-1", shard, rows)
    again = step("SN_B", chosen)._replace(round=1)
    (row,) = feed.read_batches(Job(run, job.recipe, job.listing), {"step": np.array([pickle.dumps(again)])})
    assert (row["targets"][0][0] == 2).all() and (row["targets"][0][1] == 255).all()
