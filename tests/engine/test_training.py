"""What both trainings share: order, batches, steps; two workers' gradients are one worker's."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event
from torch import nn
from torch.multiprocessing import spawn

from tests.engine.two_workers import AWorker, descend, one_of_two
from tests.runs import empty_job, index_of
from wsseg_ray.engine import training
from wsseg_ray.engine.threads import one_thread_each
from wsseg_ray.engine.training import HANDS, Index, Order, batches, epoch_order, nothing, step, step_by_photo
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, SUPERVISION, ImageRow, SupervisionRow


def shards(count: int, size: int) -> Index:
    return index_of([(f"train-{n:05d}", [f"photo{n}_{i}" for i in range(size)]) for n in range(count)])


def photos_in(order: Order) -> list[tuple[str, str]]:
    return [order.index.photo(place) for place in order.places]


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=50)
def test_an_epoch_shows_every_photo_once_however_many_workers_there_are(sizes, size, workers, seed):
    members = [(f"train-{n:05d}", [f"photo{n}_{i}" for i in range(count)]) for n, count in enumerate(sizes)]
    order = epoch_order(index_of(members), np.random.default_rng(seed))
    every = sorted((name, photo) for name, photos in members for photo in photos)
    shown = photos_in(order)
    assert sorted(shown) == every and len(order) == len(every)
    parts = [list(batches(AWorker(rank, workers), order, size)) for rank in range(workers)]
    for place, together in enumerate(zip(*parts, strict=True)):
        batch = shown[place * size : (place + 1) * size]
        assert sorted(photo for mine, _ in together for photo in mine) == sorted(batch)
        assert {count for _, count in together} == {len(batch)}
    shards = [{shard for mine, _ in part for shard, _ in mine} for part in parts]
    assert sum(map(len, shards)) == len(set.union(*shards))  # no shard is read by two


def test_few_shards_are_open_at_a_time():
    """And photos of all hands are in every stretch of the epoch."""
    order = epoch_order(shards(3 * HANDS, 5), np.random.default_rng(1))
    assert order.hands.tolist() == list(range(HANDS)) * 15
    shown = photos_in(order)
    thirds = [{shard for shard, _ in shown[start : start + 5 * HANDS]} for start in (0, 80, 160)]
    assert [len(third) for third in thirds] == [HANDS] * 3 and not thirds[0] & thirds[1]


def test_hands_of_unlike_length_end_together():
    sizes = {f"train-{n:05d}": 4 if n < 8 else 12 for n in range(HANDS)}
    members = [(shard, [f"{shard}_{i}" for i in range(size)]) for shard, size in sizes.items()]
    order = epoch_order(index_of(members), np.random.default_rng(0))
    long = [sizes[shard] == 12 for shard, _ in photos_in(order)]
    assert sum(long[:64]) == 48 and sum(long[64:]) == 48


def test_a_hand_keeps_its_shards_in_every_epoch():
    orders = [epoch_order(shards(50, 2), np.random.default_rng(epoch)) for epoch in range(3)]
    hands = [dict(zip((shard for shard, _ in photos_in(o)), o.hands.tolist(), strict=True)) for o in orders]
    assert hands[0] == hands[1] == hands[2] and len(set(hands[0].values())) == HANDS


def test_the_order_follows_the_seed():
    first, again, other = (photos_in(epoch_order(shards(5, 4), np.random.default_rng(seed))) for seed in (0, 0, 1))
    assert first == again != other and first != sorted(first)


def test_workers_have_as_much_work_as_each_other():
    order = epoch_order(shards(4 * HANDS, 8), np.random.default_rng(0))
    for workers in (2, 4, 8):
        assert {len(mine) for mine, _ in batches(AWorker(0, workers), order, 8)} == {8 // workers}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=20), st.data())
def test_some_photos_of_an_index(sizes, data):
    """Those that are kept, and no shard without any."""
    members = [(f"train-{n:05d}", [f"{n}_{i}" for i in range(count)]) for n, count in enumerate(sizes)]
    every = [(shard, name) for shard, own in members for name in own]
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(every), max_size=len(every))))
    some = index_of(members).only(kept)
    wanted = [photo for photo, keep in zip(every, kept, strict=True) if keep]
    assert [some.photo(place) for place in range(len(some))] == wanted
    assert some.shards == sorted({shard for shard, _ in wanted}) and len(some.starts) == len(some.shards) + 1


class HalfTheSquare(nn.Module):
    """A loss whose gradient is the weight; times the batch."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value, 0.0]))

    def forward(self, batch: float | None) -> torch.Tensor:
        return nothing(self) if batch is None else batch * (self.weight**2).sum() / 2


def test_a_step_by_hand():
    objective = HalfTheSquare(3.0)
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    assert step(AWorker(), objective, 1, 7, optimizer) == 4.5  # alone it has all of the weight, whatever that is
    assert objective.weight.tolist() == [0, 0]
    assert step(AWorker(), objective, None, 0, optimizer) == 0 and objective.weight.tolist() == [0, 0]


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_no_weight(factor):
    objective = HalfTheSquare(3.0)
    with pytest.raises(FloatingPointError, match="training diverged; a lower learning_rate may help"):
        step(AWorker(), objective, factor, 1, torch.optim.SGD(objective.parameters(), lr=1.0))
    assert objective.weight.tolist() == [3, 0]


class Weighted(nn.Module):
    """Mean squared error over the rows of a batch; one parameter has no part in it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer, self.idle = nn.Linear(300, 40), nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        nn.init.normal_(self.layer.weight, generator=generator)
        nn.init.zeros_(self.layer.bias)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch).square().mean(dim=1).mean()


def after_steps_by_photo(threads: int) -> tuple[list[float], Weighted]:
    objective, draw = Weighted(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)
    photos = [torch.randn(rows, 300, generator=draw) for rows in (3, 1, 7, 2, 5)]
    parts = [(photo, len(photo)) for photo in photos]
    with one_thread_each(threads) as pool:
        losses = [step_by_photo(objective, part, optimizer, pool) for part in (parts, parts[:1])]
    return losses, objective


def test_a_step_by_photo_is_the_step_of_the_batch():
    """Photos count by their rows. For any number of threads, each bit is the same."""
    losses, objective = after_steps_by_photo(1)
    for threads in (2, 3):
        again, other = after_steps_by_photo(threads)
        assert again == losses and torch.equal(other.layer.weight, objective.layer.weight)
    whole, draw = Weighted(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    rows = torch.cat([torch.randn(rows, 300, generator=draw) for rows in (3, 1, 7, 2, 5)])
    expected = [step(AWorker(), whole, batch, len(batch), optimizer) for batch in (rows, rows[:3])]
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(objective.state_dict(), whole.state_dict())
    assert objective.idle.tolist() == [1, 1]


def test_a_step_by_photo_of_photos_that_say_nothing():
    """No cell of them counts: the loss is 0, and no weight changes."""
    objective = HalfTheSquare(3.0)
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    with one_thread_each(2) as pool:
        assert step_by_photo(objective, [(1, 0), (1, 0)], optimizer, pool) == 0
        assert objective.weight.tolist() == [3, 0]
        with pytest.raises(FloatingPointError, match="training diverged"):
            step_by_photo(objective, [(1, 1), (math.nan, 1)], optimizer, pool)
    assert objective.weight.tolist() == [3, 0]


def test_one_worker_shares_with_nobody():
    objective = HalfTheSquare(1.0)
    assert training.shared(AWorker(), objective) is objective


# ---- two workers


@pytest.mark.run
def test_two_workers_go_the_way_of_one(tmp_path):
    """Two processes and DistributedDataParallel: unequal parts, and a batch of which one worker has no photo."""
    spawn(one_of_two, (str(tmp_path),), nprocs=2)
    losses, weights = descend(AWorker())
    for rank in range(2):
        found_losses, found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found_losses == pytest.approx(losses, rel=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


# ---- what a run keeps


def scalars(run: RunDirectory, name: str) -> list[tuple[str, int, float]]:
    """Tag, step and value of the events in a TensorBoard file: records of length, checksum, event, checksum."""
    data, found = run.read_bytes("logs", "tensorboard", name, "events.out.tfevents.0"), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found


def test_losses_are_there_for_tensorboard(tmp_path):
    """Written anew after each epoch: a run that goes on has every epoch once."""
    worker = AWorker(job=empty_job(tmp_path))
    losses = [("loss/image", 0.5), ("loss/image", 0.25), ("loss/region", 2.0)]
    for count in (1, 3):
        training.tensorboard(worker, "HCP", losses[:count])
    assert scalars(worker.job.run, "HCP") == [("loss/image", 1, 0.5), ("loss/image", 2, 0.25), ("loss/region", 1, 2.0)]
    training.tensorboard(AWorker(rank=1, world=2, job=worker.job), "other", losses)
    assert worker.job.run.names("logs", "tensorboard") == ["HCP"]


def test_an_index_reads_each_table_once(tmp_path, monkeypatch):
    """Before, each network read both tables in the driver twice and once in each worker."""
    job = empty_job(tmp_path)
    run = job.run
    images = [
        ImageRow("a", labels=[0], mask_uri="a.png"),
        ImageRow("b", labels=[0, 2]),
        ImageRow("c", labels=[1]),
        ImageRow("broken", "not a photo"),
    ]
    run.write_shard(IMAGES, "train-00000", images)
    rows = [SupervisionRow("b"), SupervisionRow("a"), SupervisionRow("c", "x")]
    run.write_shard(SUPERVISION, "train-00000", rows)
    run.write_shard(IMAGES, "val-00000", [ImageRow("v", labels=[1])])
    run.write_shard(SUPERVISION, "val-00000", [SupervisionRow("v")])
    reads, read = [], RunDirectory.read_shard

    def counted(self, table, shard, columns=None):
        reads.append((table.folder, shard))
        return read(self, table, shard, columns)

    monkeypatch.setattr(RunDirectory, "read_shard", counted)
    photos = training.index(job, SUPERVISION)
    assert [photos.photo(0), photos.photo(1), len(photos)] == [("train-00000", "a"), ("train-00000", "b"), 2]
    assert photos.labels.tolist() == [1, 2] and photos.has_mask.tolist() == [True, False]
    assert sorted(reads) == [("images", "train-00000"), ("supervision", "train-00000")]
    job.run.delete("images", "train-00000.parquet")
    with pytest.raises(RuntimeError, match="images: train-00000 is not there any more"):
        training.index(job, SUPERVISION)
