"""Segmentation networks: what each learns from, rounds, twins, interruptions, and any number of workers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs import copy, cut_off, empty_job, entries, files, index_of, ran, same_weights, weights
from wsseg_ray import recipe
from wsseg_ray.datasets import Listing, Photo
from wsseg_ray.engine import ray_runner, training
from wsseg_ray.engine.local import LocalRunner
from wsseg_ray.engine.stage import open_run
from wsseg_ray.errors import RecipeError
from wsseg_ray.segmentation.losses import IGNORE
from wsseg_ray.segmentation.network import SegmentationNetwork
from wsseg_ray.segmentation.networks import NETWORKS, START, unrefined
from wsseg_ray.stages import segmenters, train_segmenter
from wsseg_ray.stages.feed import Batch
from wsseg_ray.stages.train_segmenter import KeptFeatures, SegmentationObjective, Shown, counted, members
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import own_labels

LOCAL = ["runtime.engine=local", "segmentation.ablation=false"]
RIVALS = [network.name for network in NETWORKS.variants() if network.kind in ("rival", "cam")]


def retrain(run: RunDirectory, tiny: list[str], *settings: str, until: str | None = "train_segmenter") -> RunDirectory:
    return ran(recipe.load("demo", [*tiny, *LOCAL, *settings]), run, until)


def names_trained(monkeypatch) -> list[str]:
    """The networks that are trained from now on, as they are."""
    found: list[str] = []
    real = train_segmenter._loop

    def loop(names, round_, worker):
        found.extend(f"{name} {round_}" for name in names)
        real(names, round_, worker)

    monkeypatch.setattr(train_segmenter, "_loop", loop)
    return found


# ---- which networks, and from what


def test_a_network_learns_from_its_own_photos():
    photos = index_of([("train-00000", ["a", "b"]), ("train-00001", ["c"])])
    photos = replace(photos, labels=np.array([1, 2, 3]), has_mask=np.array([True, False, False]))
    expected = {"AN_B": "abc", "SN_B": "a", "FULL": "a", "CCNN": "abc", "CAM": "abc"}
    for name, ids in expected.items():
        assert "".join(members(photos, NETWORKS.get(name)).names.to_pylist()) == ids, name
    assert members(photos, unrefined(NETWORKS.get("SN_B"))).shards == ["train-00000"]


def test_networks_of_a_recipe():
    def names(*settings):
        return [network.name for network in segmenters.networks(recipe.load("demo", [*settings]))]

    chosen = "segmentation.networks=[SN_B, CAM, FULL, CCNN]"
    assert names(chosen) == ["SN_B", "CAM", "FULL", "CCNN", "SN_B_unrefined"], "of the paper's own networks alone"
    assert names(chosen, "segmentation.ablation=false") == ["SN_B", "CAM", "FULL", "CCNN"]
    assert names(chosen, "refinement.enabled=false") == ["SN_B", "CAM", "FULL", "CCNN"]


def test_rounds_of_networks():
    loaded = recipe.load("demo", ["segmentation.networks=[SN_B, CAM, FULL]", "segmentation.rounds=1", *LOCAL])
    assert {n.name: segmenters.rounds(loaded, n) for n in segmenters.networks(loaded)} == {
        "SN_B": 1,
        "CAM": 2,
        "FULL": 0,
    }
    assert segmenters.most_rounds(loaded) == 2
    assert [[network.name for network in segmenters.of_round(loaded, r)] for r in range(3)] == [
        ["SN_B", "CAM", "FULL"],
        ["SN_B", "CAM"],
        ["CAM"],
    ]
    assert segmenters.last_folder(loaded, NETWORKS.get("CAM")) == "segmenters-2"
    assert segmenters.last_folder(loaded, NETWORKS.get("FULL")) == "segmenters"


def test_how_a_network_begins():
    loaded = recipe.load("demo")
    assert [segmenters.begins_with_start(loaded, NETWORKS.get(name)) for name in ("CCNN", "CAM", "SN_B")] == [
        True,
        False,
        False,
    ]
    off = recipe.load("demo", ["segmentation.rivals.start_epochs=0"])
    assert not segmenters.begins_with_start(off, NETWORKS.get("CCNN"))
    assert segmenters.epochs(loaded, START) == 4 and segmenters.epochs(loaded, NETWORKS.get("CCNN")) == 5
    rates = [segmenters.learning_rate(loaded, NETWORKS.get(name)) for name in ("SN_B", "ILP", "CCNN")]
    assert rates == [0.01, 1e-4, 0.01], "where few cells get all of the gradient, steps are smaller"


def test_the_first_weights_of_a_network():
    loaded = recipe.load("demo")
    plain, fresh = segmenters.build(loaded, 6, None)
    assert fresh == [name for name, _ in plain.named_parameters()]
    hcp = {name: tensor + 1 for name, tensor in plain.state_dict().items() if name.startswith("backbone.")}
    network, fresh = segmenters.build(loaded, 6, {**hcp, "head.fc6.weight": torch.zeros(1)})
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in hcp.items())
    assert fresh and all(name.startswith("head.") for name in fresh)
    again, fresh = segmenters.build(loaded, 6, None, network.state_dict())
    assert fresh == [] and all(torch.equal(*p) for p in zip(again.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["segmentation.freeze=6"], ["segmentation.freeze", "5 conv layers"]),
        (["segmentation={backbone: small, weights: imagenet}"], ["segmentation.weights", "'small'"]),
        (
            ["segmentation={backbone: small, head: lraspp, weights: random}"],
            ["segmentation.head", "'lraspp'", "'small'"],
        ),
        (
            ["segmentation={backbone: 'torchvision:resnet50', head: fcn, weights: random, freeze: 3}"],
            ["can freeze all layers or none, not 3"],
        ),
    ],
)
def test_a_mistake_is_named_before_any_work(settings, words):
    (finding,) = train_segmenter.STAGE.check(recipe.load("demo", settings), None)
    assert isinstance(finding.problem, RecipeError) and all(word in finding.text for word in words), finding.text


def test_a_network_without_a_photo_is_refused(tmp_path):
    job = empty_job(tmp_path, "segmentation.networks=[FULL]", *LOCAL)
    with pytest.raises(RuntimeError, match="FULL: no training photo for it; leave it out"):
        train_segmenter.STAGE.do(job, LocalRunner())


# ---- losses of a step


def test_what_a_loss_is_the_mean_of():
    inside = torch.tensor([[1.0, 0, 0], [0, 1, 0]])[None, :, None, :]  # (1, 2, 1, 3): two cells of a photo, one outside
    assert counted("maps", inside) == 2 and counted("labels", inside) == 1
    assert counted("mask", torch.tensor([[[[0.0, 3, IGNORE]]]])) == 2


@pytest.mark.parametrize("name", ["AN_A", "SN_B", "CCNN", "CAM"])
def test_gradients_of_two_workers_add_up_to_those_of_one(name):
    """Crops that lie partly outside their photos: what counts is cells, or photos, whatever a worker has."""
    about = NETWORKS.get(name)
    rng = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (4, 33, 33, 3), dtype=torch.uint8, generator=rng)
    if about.target == "maps":
        targets = torch.rand(4, 3, 9, 9, generator=rng).softmax(dim=1)
        targets[1, :, 2:] = 0
    elif about.target == "mask":
        targets = torch.randint(0, 3, (4, 1, 9, 9), generator=rng).float()
        targets[1, :, 2:] = IGNORE
    else:
        targets = torch.zeros(4, 3, 9, 9)
        targets[:, [0, 2]] = 1
        targets[1, :, 2:] = 0

    def gradients(parts):
        torch.manual_seed(0)
        network = SegmentationNetwork("small", "largefov", 3).train()
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.eval()
        objective = SegmentationObjective(network, about, 0, KeptFeatures())
        whole = counted(about.target, targets)
        for part in parts:
            batch = Batch(photos[part], None, targets[part], part)
            weight = counted(about.target, batch.targets) / whole
            (objective(Shown(batch, part)) * weight).backward()
        return {key: parameter.grad for key, parameter in network.named_parameters()}

    one, two = gradients([[0, 1, 2, 3]]), gradients([[0, 2], [1, 3]])
    for key, gradient in one.items():
        torch.testing.assert_close(two[key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=key)


def test_a_frozen_backbone_looks_at_a_crop_once():
    network = SegmentationNetwork("small", "largefov", 3).eval()
    network.freeze("all")
    seen: list[int] = []
    network.backbone.register_forward_hook(lambda module, given, found: seen.append(len(given[0])))
    photos = torch.randint(0, 256, (3, 33, 33, 3), dtype=torch.uint8)
    kept = KeptFeatures()
    first = kept.features(network, Batch(photos, None, photos, [7, 8, 9]))
    again = kept.features(network, Batch(photos[[2, 0]], None, photos, [9, 7]))
    assert seen == [3] and torch.equal(again["out"], first["out"][[2, 0]])
    kept.features(network, Batch(photos[:2], None, photos, [7, 10]))
    assert seen == [3, 1], "the new one alone"
    network.freeze("none")
    kept.features(network, Batch(photos, None, photos, [7, 8, 9]))
    assert seen == [3, 1, 3]


# ---- whole trainings


class Died(BaseException):
    """Stands for a kill: nobody tidies up behind it."""


EPOCHS = ["segmentation.networks=[AN_A, SN_B]", "segmentation.epochs=3", "runtime.checkpoint_minutes=0"]


@pytest.fixture(scope="module")
def whole(tiny_local, tiny, tmp_path_factory) -> RunDirectory:
    """An undisturbed training of two networks."""
    return retrain(copy(tiny_local[1], tmp_path_factory.mktemp("segmenters")), tiny, *EPOCHS)


@pytest.mark.run
@pytest.mark.parametrize("steps", [2, 6, 11])
def test_a_training_that_was_cut_off_goes_on_and_changes_no_weight(
    whole, tiny_local, tiny, tmp_path, monkeypatch, steps
):
    """In the middle of an epoch of the first network and of the second; AN_A has three steps an epoch."""
    run = copy(tiny_local[1], tmp_path)
    taken, real = [], training.step

    def step(*arguments):
        taken.append(1)
        if len(taken) == steps:
            raise Died
        return real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Died):
        patched.setattr(training, "step", step)
        run = retrain(run, tiny, *EPOCHS)
    run = retrain(run, tiny, *EPOCHS)
    for name in ("AN_A", "SN_B"):
        assert same_weights(run, whole, "segmenters", name, "network.pt")
        logs = [[e["loss"] for e in place.read_json("segmenters", name, "log.json")] for place in (run, whole)]
        assert logs[0] == logs[1] and len(logs[0]) == 3
        assert run.names("segmenters", name) == ["log.json", "network.pt"]


def test_a_network_that_is_added_is_trained_alone(tiny_local, tiny, tmp_path, monkeypatch):
    run = copy(tiny_local[1], tmp_path)
    before = entries(run)
    names = names_trained(monkeypatch)
    run = retrain(run, tiny, "segmentation.networks=[AN_A, SN_B, FULL, AN_B]", until=None)
    assert names == ["AN_B 0"]
    assert all(same_weights(run, tiny_local[1], "segmenters", name, "network.pt") for name in ("AN_A", "SN_B", "FULL"))
    after = entries(run)
    assert [name for name in after if after[name] != before[name]] == ["train_segmenter", "predict"]
    assert set(run.read_json("metrics.json")["networks"]) == {"AN_A", "SN_B", "FULL", "AN_B"}


@pytest.mark.run
def test_the_rivals_are_networks_like_others(tiny_local, tiny, tmp_path, monkeypatch):
    """They are trained beside what is there, on all photos, and measured like it."""
    run = copy(tiny_local[1], tmp_path)
    late = "ILP_BB"  # a twin of MIL-ILP's network, which is then there: nothing is trained for it
    first = [name for name in RIVALS if name not in (late, "CAM")]
    names = names_trained(monkeypatch)
    run = retrain(run, tiny, f"segmentation.networks=[SN_B, {', '.join(first)}]")
    assert names == ["START 0", *(f"{name} 0" for name in ("MIL_FCN", "EM_ADAPT", "CCNN", "ILP"))]
    names.clear()
    run = retrain(run, tiny, f"segmentation.networks=[SN_B, {', '.join([*first, late])}]", until=None)
    assert names == []
    assert same_weights(run, tiny_local[1], "segmenters", "SN_B", "network.pt")
    found = run.read_json("metrics.json")["networks"]
    assert set(found) == {"SN_B", late, *first}
    for name in (late, *first):
        assert found[name]["val"]["photos"] == 12 and 0 < found[name]["log"][0]["loss"] < 10
        assert found[name]["kind"] == "rival"
    assert all(name in run.read_bytes("report.html").decode() for name in first)
    twins = [name for name in RIVALS if name.startswith("ILP")]
    assert len(twins) == 4 and len({run.read_bytes("segmenters", name, "network.pt") for name in twins}) == 1


def in_rounds(*more: str) -> list[str]:
    """Rounds of a torchvision network whose backbone is frozen."""
    keys = {"backbone": "'torchvision:mobilenet_v3_large'", "head": "lraspp", "weights": "random", "freeze": "all"}
    chosen = ["segmentation.networks=[SN_B, CAM, FULL]", "segmentation.rounds=1", "crf.iterations=1"]
    return [*chosen, *(f"segmentation.{key}={value}" for key, value in keys.items()), *more]


@pytest.mark.run
def test_rounds_of_a_torchvision_network(tiny_local, tiny, tmp_path, monkeypatch):
    """Networks learn again from their own labels, CAM once more than others. A network that comes later is alone."""
    run = copy(tiny_local[1], tmp_path)
    views = "prediction={scales: [0.5, 1], mirror: true}"
    names = names_trained(monkeypatch)
    run = retrain(run, tiny, *in_rounds("segmentation.networks=[CAM, FULL]", views), until="train_segmenter-2")
    assert names == ["CAM 0", "FULL 0", "CAM 1", "CAM 2"]
    kept = {round_: weights(run, segmenters.folder(round_), "CAM", "network.pt") for round_ in range(3)}
    names.clear()
    run = retrain(run, tiny, *in_rounds(views), until=None)
    assert names == ["SN_B 0", "SN_B 1"]
    assert {tuple(row.networks) for row in run.rows(own_labels(1))} == {("SN_B",)}, "labels of CAM are not made again"
    for round_, before in kept.items():
        after = weights(run, segmenters.folder(round_), "CAM", "network.pt")
        assert all(torch.equal(after[name], before[name]) for name in before)
    logs = {name: network["log"] for name, network in run.read_json("metrics.json")["networks"].items()}
    taught = {name: [(entry["round"], entry["epoch"]) for entry in log] for name, log in logs.items()}
    assert taught == {"SN_B": [(0, 0), (1, 0)], "CAM": [(0, 0), (1, 0), (2, 0)], "FULL": [(0, 0)]}
    assert all(0 <= entry["waited"] <= 1 for log in logs.values() for entry in log)
    assert {f: files(run, f) for f in ("segmenters", "segmenters-1", "segmenters-2")} == {
        "segmenters": ["CAM", "FULL", "SN_B"],
        "segmenters-1": ["CAM", "SN_B"],
        "segmenters-2": ["CAM"],
    }
    assert run.names("segmenters-1", "SN_B") == ["log.json", "network.pt"]
    assert "round 2" in run.read_bytes("report.html").decode()


@pytest.mark.run
def test_a_round_that_was_cut_off_goes_on(tiny_local, tiny, tmp_path, monkeypatch):
    """Without a network and some of its labels: they are made again, and are the same."""
    run = copy(tiny_local[1], tmp_path)
    run = retrain(run, tiny, *in_rounds("segmentation.networks=[SN_B]"), until="train_segmenter-1")
    before = weights(run, "segmenters-1", "SN_B", "network.pt")
    shard = run.shards("labels-1")[0]
    cut_off(run, "relabel-1", f"labels-1/{shard}.parquet")
    cut_off(run, "train_segmenter-1", "segmenters-1/SN_B/network.pt")
    names = names_trained(monkeypatch)
    run = retrain(run, tiny, *in_rounds("segmentation.networks=[SN_B]"), until="train_segmenter-1")
    after = weights(run, "segmenters-1", "SN_B", "network.pt")
    assert names == ["SN_B 1"] and all(torch.equal(after[name], before[name]) for name in before)


SHARED = [
    "segmentation.networks=[AN_A, SN_B, EM_ADAPT]",
    "segmentation.rivals.start_epochs=1",
    "segmentation.ablation=false",
    "segmentation.freeze=all",  # BatchNorm with statistics of its own batch is another function on half of it
    "segmentation.batch_size=4",
    "segmentation.crop=129",  # larger than the photos, which differ in size: batches differ in cells
]


def test_one_and_two_workers_train_the_same_networks(tiny_run, tiny, tmp_path):
    """On Ray Train: two workers train START together, with which EM_ADAPT begins, and then each its own networks."""
    found: list[dict[str, Any]] = []
    for workers in (1, 2):
        (tmp_path / f"{workers}").mkdir()
        run = copy(tiny_run[1], tmp_path / f"{workers}")
        settings = [*tiny, *SHARED, f"runtime.num_workers={workers}"]
        run = ran(recipe.load("demo", settings), run, "train_segmenter")
        names = ("START", "AN_A", "SN_B", "EM_ADAPT")
        found.append({name: weights(run, "segmenters", name, "network.pt") for name in names})
        told = [run.read_json("segmenters", ray_runner.progress_file(rank)) for rank in range(workers)]
        assert all(state["seen"] > 0 for state in told)
    one, two = found
    for name, tensors in one.items():
        atol = 1e-6 if name in ("AN_A", "SN_B") else 1e-5  # what two workers exchange, and what begins with it
        for key, tensor in tensors.items():
            torch.testing.assert_close(two[name][key], tensor, rtol=1e-4, atol=atol, msg=f"{name} {key}")
    assert not torch.equal(one["AN_A"]["head.fc6.weight"], one["SN_B"]["head.fc6.weight"])


def test_a_network_without_photos_is_refused_before_any_work():
    both = Photo("a", "a.jpg", (0, 1), "train")
    photos = [both, Photo("b", "b.jpg", (0,), "val", "b.png"), Photo("c", "c.jpg", (1,), "train", "c.png", "broken")]
    settings = ["segmentation.networks=[AN_A, SN_B, FULL]", "segmentation.ablation=false"]

    def problems(*more: Photo) -> list[str]:
        listing = Listing(["x", "y"], [1, 2], [*photos, *more])
        found = train_segmenter.STAGE.check(recipe.load("demo", settings), listing)
        return [str(finding.problem) for finding in found if finding.problem]

    assert [text.partition(":")[0] for text in problems()] == ["SN_B", "FULL"]
    assert [text.partition(":")[0] for text in problems(replace(both, labels=(1,)))] == ["FULL"]
    assert problems(replace(both, labels=(1,), mask_uri="a.png")) == []


def test_an_opened_run_knows_its_networks(tiny_local):
    job = open_run(tiny_local[1])
    names = [network.name for network in segmenters.networks(job.recipe)]
    assert names == ["AN_A", "SN_B", "FULL", "AN_A_unrefined", "SN_B_unrefined"]
    assert all(segmenters.is_trained(job, network, 0) for network in segmenters.networks(job.recipe))
    assert [entry["epoch"] for entry in segmenters.read_log(job, NETWORKS.get("AN_A"))] == [0]
    assert not segmenters.is_trained(replace(job), NETWORKS.get("CAM"), 0)
