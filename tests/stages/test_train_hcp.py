"""HCP's training: the same weights with any number of workers, and after any interruption."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.engine.two_workers import AWorker
from tests.runs import copy, files, ran, same_weights, weights
from wsseg_ray import recipe
from wsseg_ray.engine import training
from wsseg_ray.engine.local import LocalRunner
from wsseg_ray.engine.stage import Job, open_run
from wsseg_ray.errors import RecipeError
from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.stages import hcp, train_hcp
from wsseg_ray.stages.train_hcp import Feed, HcpObjective, phases
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, PROPOSALS

SELF_TAUGHT = ["hcp.loss=binary_cross_entropy", "hcp.pooling=context", "hcp.region_rounds=2", "hcp.region_epochs=2"]


def gradients(job: Job, phase: str, parts: list[list[tuple[str, str]]]) -> dict[str, torch.Tensor]:
    """What workers with these parts of a batch sum up, with half of fc6 and fc7 dropped, as in VGG-16.

    BatchNorm, which VGG-16 does not have, keeps its statistics: it would take those of the part.
    """
    torch.manual_seed(0)
    network = HypothesisNetwork("small", len(job.classes), job.recipe.hcp.pooling).train()
    network.head.dropout6.p = network.head.dropout7.p = 0.5
    for layer in network.backbone.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
            torch.nn.init.normal_(layer.bias)  # so that a filled-up border would not stay zero
    feed = Feed(job, network, torch.device("cpu"))
    feed.begin(phase, None)
    objective = HcpObjective(network, hcp.loss_of(job.recipe), torch.device("cpu"))
    for part in parts:
        (objective(feed.batch(part, 3)) * len(part) / sum(map(len, parts))).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("phase", ["image", "hypothesis"])
def test_gradients_of_two_workers_add_up_to_those_of_one(tiny_local, phase):
    job = open_run(tiny_local[1])
    photos = training.index(job, PROPOSALS)
    batch = [photos.photo(place) for place in range(6)]
    assert len({(row.height, row.width) for row in job.run.rows(IMAGES)}) > 3
    one = gradients(job, phase, [batch])
    two = gradients(job, phase, [batch[0::2], batch[1::2]])
    for name, gradient in one.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_a_worker_without_photos_has_gradients_of_nothing(tiny_local):
    job = open_run(tiny_local[1])
    network = HypothesisNetwork("small", len(job.classes), "segment")
    loss = HcpObjective(network, hcp.loss_of(job.recipe), torch.device("cpu"))(None)
    loss.backward()
    assert loss.item() == 0 and all((p.grad == 0).all() for p in network.parameters())


def test_phases():
    epochs = ["hcp.image_epochs=2", "hcp.hypothesis_epochs=3", "hcp.region_epochs=5", "hcp.region_rounds=2"]
    found = [(phase.name, phase.epochs) for phase in phases(recipe.load("demo", epochs).hcp)]
    assert found == [("image", 2), ("hypothesis", 3), ("region-0", 5), ("region-1", 5)]


def retrained(tiny_local, tiny, folder, settings) -> RunDirectory:
    """A copy of a run whose HCP is trained again, with other settings."""
    folder.mkdir()
    run = copy(tiny_local[1], folder)
    return ran(recipe.load("demo", [*tiny, "runtime.engine=local", *settings]), run, "train_hcp")


class Died(BaseException):
    """Stands for a kill: nobody tidies up behind it."""


@pytest.fixture(scope="module")
def whole(tiny_local, tiny, tmp_path_factory) -> RunDirectory:
    """An undisturbed training with region rounds."""
    return retrained(tiny_local, tiny, tmp_path_factory.mktemp("hcp") / "whole", CUT)


CUT = [*SELF_TAUGHT, "hcp.batch_size=12"]


@pytest.mark.run
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_training_that_was_cut_off_goes_on_and_changes_no_weight(
    whole, tiny_local, tiny, tmp_path, monkeypatch, steps
):
    """In the first epoch, and in both region rounds, which go on with the same teacher. An epoch is one step here."""
    run, _ = cut_off_at(steps, CUT, tiny_local, tiny, tmp_path, monkeypatch)
    log = whole.read_json("hcp", "log.json")
    assert [entry["step"] for entry in log["log"]] == ["image", "hypothesis", *["region-0"] * 2, *["region-1"] * 2]
    assert run.read_json("hcp", "log.json") == log and same_weights(run, whole, "hcp", "network.pt")
    assert files(run, "hcp") == files(whole, "hcp") == ["log.json", "network.pt"]


@pytest.mark.run
def test_what_was_done_of_an_epoch_is_not_done_again(tiny_local, tiny, tmp_path, monkeypatch):
    """With `runtime.checkpoint_minutes`: of three steps per epoch, the second one of the second epoch is the fifth."""
    settings = ["hcp.batch_size=4", "hcp.image_epochs=2", "hcp.hypothesis_epochs=0", "runtime.checkpoint_minutes=0"]
    whole = retrained(tiny_local, tiny, tmp_path / "whole", settings)
    run, again = cut_off_at(5, settings, tiny_local, tiny, tmp_path, monkeypatch)
    assert again == 2
    assert run.read_json("hcp", "log.json") == whole.read_json("hcp", "log.json")
    assert same_weights(run, whole, "hcp", "network.pt")


def cut_off_at(steps, settings, tiny_local, tiny, folder, monkeypatch) -> tuple[RunDirectory, int]:
    """A training that died in a step and went on, and the number of its steps after that."""
    taken, real = [], training.step

    def step(*arguments):
        taken.append(1)
        if len(taken) == steps:
            raise Died
        return real(*arguments)

    monkeypatch.setattr(training, "step", step)
    with pytest.raises(Died):
        retrained(tiny_local, tiny, folder / "cut", settings)
    run = RunDirectory.at(str(folder / "cut" / "run")).now()
    assert run.exists("hcp") and not run.exists("hcp", "network.pt")
    run = ran(recipe.load("demo", [*tiny, "runtime.engine=local", *settings]), run, "train_hcp")
    return run, len(taken) - steps


def test_what_is_trained_is_not_trained_again(tiny_local):
    class NoRunner(LocalRunner):
        def fit(self, *_):
            raise AssertionError("trained again")

    assert train_hcp.STAGE.do(open_run(tiny_local[1]), NoRunner()) == 0


def with_frozen_backbone(job: Job) -> Job:
    """The job, with a backbone that is not trained, and without stored features."""
    hcp_section = job.recipe.hcp.model_copy(update={"freeze": "all"})
    features = job.recipe.features.model_copy(update={"stored": False})
    return replace(job, recipe=job.recipe.model_copy(update={"hcp": hcp_section, "features": features}))


def test_a_frozen_backbone_looks_at_a_photo_once(tiny_local, monkeypatch):
    """Its pooled features are kept until the next phase; where it is trained, a photo is mirrored every other time."""
    job = open_run(tiny_local[1])
    frozen = with_frozen_backbone(job)
    photos = training.index(job, PROPOSALS)
    batch, calls, real = [photos.photo(place) for place in range(3)], [], train_hcp.pool_photos
    monkeypatch.setattr(train_hcp, "pool_photos", lambda *given: calls.append(len(given[1])) or real(*given))
    network, _ = hcp.build(frozen.recipe, len(job.classes))
    feed = Feed(frozen, network, torch.device("cpu"))
    for phase in ("image", "hypothesis"):
        feed.begin(phase, None)
        first, again = feed.batch(batch, 0), feed.batch(batch[::-1], 1)
        assert all(torch.equal(*pair) for pair in zip(first.pooled, again.pooled[::-1], strict=True))
        assert [len(part) for part in first.pooled] == ([1] * 3 if phase == "image" else [10] * 3)
    assert calls == [1] * 6 and first.numbers != again.numbers[::-1]
    trained = Feed(job, hcp.build(job.recipe, len(job.classes))[0], torch.device("cpu"))
    trained.begin("image", None)
    shown = [trained.batch(batch, epoch).photos[0] for epoch in range(8)]
    assert {any(torch.equal(photo, shown[0].flip(2)) for photo in shown)} == {True}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_photo_is_read_and_pooled_by_one_worker(tiny_local, workers, monkeypatch):
    """Two epochs: however many workers there are, one of them reads a shard, and pools its photos, once."""
    job = with_frozen_backbone(open_run(tiny_local[1]))
    photos = training.index(job, PROPOSALS)
    pooled, loaded = [], []
    pool, load = Feed._pool, Feed._load
    monkeypatch.setattr(Feed, "_pool", lambda feed, shard, i: pooled.append(i) or pool(feed, shard, i))
    monkeypatch.setattr(Feed, "_load", lambda feed, shard: loaded.append(shard) or load(feed, shard))
    for rank in range(workers):
        feed = Feed(job, hcp.build(job.recipe, len(job.classes))[0], torch.device("cpu"))
        feed.begin("image", None)
        for epoch in range(2):
            order = training.epoch_order(photos, np.random.default_rng(epoch))
            for mine, _ in training.batches(AWorker(rank, workers), order, 8):
                if mine:
                    feed.batch(mine, epoch)
    assert sorted(loaded) == photos.shards
    assert sorted(pooled) == sorted(photos.names.to_pylist())


def test_candidates_are_part_of_training_where_regions_learn_from_them():
    assert "hcp.threshold" not in train_hcp.STAGE.settings(recipe.load("demo"))
    assert "hcp.threshold" in train_hcp.STAGE.settings(recipe.load("demo", SELF_TAUGHT))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["hcp.region_rounds=1"], ["hcp.region_rounds", "binary_cross_entropy, not cross_entropy"]),
        (["hcp.freeze=6"], ["hcp.freeze", "5 conv layers"]),
        (["hcp={backbone: vgg16, freeze: 14}", "segmentation.weights=random"], ["hcp.freeze", "13 conv layers"]),
        (["hcp.weights=imagenet"], ["hcp.weights", "'small'"]),
        (
            ["hcp={backbone: 'torchvision:resnet50', weights: null, freeze: 3}", "segmentation.weights=random"],
            ["hcp.backbone: 'torchvision:resnet50' does not serve regions"],
        ),
    ],
)
def test_a_mistake_is_named_before_any_work(settings, words):
    (finding,) = train_hcp.STAGE.check(recipe.load("demo", [*settings]), None)
    assert isinstance(finding.problem, RecipeError) and all(word in finding.text for word in words), finding.text


@pytest.mark.long
def test_one_and_two_workers_train_the_same_network(tiny_run, tiny, tmp_path):
    """On Ray Train, with the backbone frozen: its BatchNorm would see each worker's part of a batch."""
    found = []
    for workers in (1, 2):
        (tmp_path / f"{workers}").mkdir()
        run = copy(tiny_run[1], tmp_path / f"{workers}")
        settings = [*tiny, "hcp.freeze=all", f"runtime.stages.train_hcp.max_workers={workers}"]
        run = ran(recipe.load("demo", settings), run, "train_hcp")
        found.append(weights(run, "hcp", "network.pt"))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)
