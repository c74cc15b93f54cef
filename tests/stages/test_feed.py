"""What the trainers are fed: the order of training, whatever task is done first, and the kernels' targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest

from tests.runs import copy
from wsseg_ray.datasets.pixels import encode_mask, read_photo
from wsseg_ray.engine.local import columns
from wsseg_ray.engine.stage import Job, open_run, photo_number
from wsseg_ray.segmentation.grid import grid_size
from wsseg_ray.segmentation.networks import NETWORKS, unrefined
from wsseg_ray.segmentation.targets import crop_and_mirror, soft_target
from wsseg_ray.stages import feed
from wsseg_ray.stages.feed import SgdStep, target_kind
from wsseg_ray.storage import read_bytes
from wsseg_ray.tables import IMAGES, PROPOSALS, SUPERVISION, OwnLabelsRow, own_labels


def with_networks(job: Job, *names: str) -> Job:
    segmentation = job.recipe.segmentation.model_copy(update={"networks": list(names)})
    return replace(job, recipe=job.recipe.model_copy(update={"segmentation": segmentation}))


@pytest.fixture(scope="module")
def job(tiny_local) -> Job:
    return with_networks(open_run(tiny_local[1]), "AN_A", "SN_B", "FULL", "CCNN")


def photos(job: Job) -> list[tuple[str, str]]:
    return [
        (shard, i) for shard in job.run.shards("supervision") for i in sorted(job.run.read_good(SUPERVISION, shard))
    ]


def step(network: str, chosen: Sequence[tuple[str, str]], index: int = 0) -> SgdStep:
    shards, ids = zip(*chosen, strict=True) if chosen else ((), ())
    return SgdStep(network, 0, 3, index, shards, ids, len(chosen), False, 0)


def read(job: Job, *steps: SgdStep) -> list[dict[str, np.ndarray]]:
    return list(feed.read_batches(job, columns([asdict(one) for one in steps])))


def test_kinds_of_targets():
    kinds = {"AN_A": "maps", "SN_A": "maps", "SN_B": "mask", "FULL": "truth", "CCNN": "labels", "CAM": "labels"}
    assert {name: target_kind(NETWORKS.get(name), 0) for name in kinds} == kinds
    assert {target_kind(NETWORKS.get(name), 1) for name in kinds} == {"own"}
    assert target_kind(unrefined(NETWORKS.get("SN_A")), 0) == "maps"


@pytest.mark.parametrize("name", ["AN_A", "AN_A_unrefined"])
def test_a_sample_is_what_the_kernels_make(job, name):
    chosen = photos(job)[:3]
    (row,) = read(job, step(name, chosen))
    settings = job.recipe.segmentation
    cells = grid_size(settings.backbone, settings.head, settings.crop)
    for place, (shard, image_id) in enumerate(chosen):
        image = job.run.read_good(IMAGES, shard)[image_id]
        own = job.run.read_good(SUPERVISION, shard)[image_id]
        rng = np.random.default_rng([0, photo_number(image_id), 3])
        superpixels = job.run.read_good(PROPOSALS, shard)[image_id].superpixels
        photo, (over,), valid = crop_and_mirror(rng, read_photo(read_bytes(image.uri)), [superpixels], settings.crop)
        maps = own.maps_unrefined if name.endswith("_unrefined") else own.maps
        target = soft_target(over, valid, maps, own.labels, len(job.classes), cells, cells)
        assert np.array_equal(row["photos"][0][place], photo)
        assert np.array_equal(row["targets"][0][place], target)


def mixed_steps(job: Job) -> list[SgdStep]:
    """Eight steps of all kinds of targets; of one of them this worker has no photo."""
    everything, names = photos(job), ["AN_A", "SN_B", "FULL", "CCNN"]
    return [step(names[n % 4], everything[n : n + 2] if n != 3 else [], n) for n in range(8)]


class Worker:
    """Streams as Ray does not: a step at a time."""

    def __init__(self, job):
        self.job = job

    def stream(self, steps, read):
        import torch

        for one in steps:
            (arrays,) = read(columns([one]))
            yield {name: torch.from_numpy(array[0]) for name, array in arrays.items()}


def test_steps_come_in_order_with_all_kinds_mixed(job):
    steps = mixed_steps(job)
    assert_fed(job, steps, list(feed.stream(Worker(job), iter(steps))))


def assert_fed(job: Job, steps: list[SgdStep], found: list) -> None:
    """They are the steps, each with what was read for it, whoever it was read together with."""
    assert [given for given, _ in found] == steps
    for (given, (batch,)), row in zip(found, read(job, *steps), strict=True):
        assert len(batch.photos) == len(batch.numbers) == len(given.photos)
        assert np.array_equal(batch.photos.numpy(), row["photos"][0])
        assert np.array_equal(batch.targets.numpy(), row["targets"][0])
    channels = [batch.targets.shape[1] for _, (batch,) in found]
    assert channels == [7, 1, 1, 1, 7, 1, 1, 7]  # classes and background, or a class a cell


def train(worker) -> None:
    """A training that keeps what it was fed."""
    found = [
        (given.index, batch.photos.tolist(), batch.targets.tolist(), batch.numbers)
        for given, (batch,) in feed.stream(worker, iter(mixed_steps(worker.job)))
    ]
    worker.job.run.write_json(found, "hcp", "fed.json")


@pytest.mark.long
def test_on_ray_they_come_in_order_too(cluster, job, tiny_local, tmp_path):
    """More steps than a task takes and than a Dataset holds."""
    from tests.engine.runner_contract import TRAINERS
    from wsseg_ray.engine.local import LocalRunner
    from wsseg_ray.engine.ray_runner import RayRunner

    fed = []
    for runner, loop in ((LocalRunner(), train), (RayRunner(), train_in_small_pieces)):
        (tmp_path / loop.__name__).mkdir()
        own = replace(job, run=copy(tiny_local[1], tmp_path / loop.__name__))
        runner.fit(own, TRAINERS, loop, 8, None)
        fed.append(own.run.read_json("hcp", "fed.json"))
    assert fed[0] == fed[1] and [index for index, *_ in fed[0]] == list(range(8))


def train_in_small_pieces(worker) -> None:
    """In a process of its own, that of the trainer."""
    from wsseg_ray.engine import ray_runner

    ray_runner.STEPS_A_TASK, ray_runner.SPAN = 2, 5
    train(worker)


def test_a_rival_is_shown_names_alone(job):
    shard, image_id = photos(job)[0]
    (row,) = read(job, step("CCNN", [(shard, image_id)]))
    labels = job.run.read_good(IMAGES, shard)[image_id].labels
    shown = row["targets"][0][0].any(axis=(1, 2)).nonzero()[0]
    assert shown.tolist() == [0, *(labels + 1)] and set(np.unique(row["targets"])) == {0, 1}


def test_equal_crops_have_equal_numbers(job):
    chosen = photos(job)[:2]
    first, again, other = (
        read(job, one)[0]["numbers"][0]
        for one in (step("AN_A", chosen), step("SN_B", chosen), step("AN_A", chosen[::-1]))
    )
    assert np.array_equal(first, again) and np.array_equal(first, other[::-1]) and first.min() >= 0


def test_a_photo_that_was_not_labelled_again_counts_nowhere(job, tiny_local, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    (shard, good), *_ = chosen = [pair for pair in photos(job) if pair[0] == photos(job)[0][0]][:2]
    image = run.read_good(IMAGES, shard)[good]
    seen = encode_mask(np.full((image.height, image.width), 2, np.uint8))
    rows = [OwnLabelsRow(good, networks=["AN_A", "SN_B"], png=[b"", seen]), OwnLabelsRow(chosen[1][1], "failed")]
    run.write_shard(own_labels(1), shard, rows)
    (row,) = read(replace(job, run=run), replace(step("SN_B", chosen), round=1))
    assert set(np.unique(row["targets"][0][0])) == {2} and (row["targets"][0][1] == 255).all()


def test_a_mask_that_cannot_be_read_costs_its_photo_alone(job, tmp_path, monkeypatch):
    """It failed in `supervise`, so FULL does not learn from it, and must not open it."""
    shard, image_id = photos(job)[0]
    others = [pair for pair in photos(job) if pair[0] == shard and pair[1] != image_id]
    run = copy(job.run, tmp_path)
    rows = run.read_shard(SUPERVISION, shard)
    for row in rows:
        row.error = "PixelError: its mask is broken" if row.image_id == image_id else row.error
    run.write_shard(SUPERVISION, shard, rows)
    real = feed.truth_of

    def truth_of(job, image):
        assert image.image_id != image_id
        return real(job, image)

    monkeypatch.setattr(feed, "truth_of", truth_of)
    (row,) = read(replace(job, run=run), step("FULL", others))
    assert row["photos"].shape[1] == len(others) > 0
