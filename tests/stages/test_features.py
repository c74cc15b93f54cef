"""Stage `features`: a frozen backbone looks once. Whole runs with tiny random models of timm, of three families."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.runs import copy, same_weights
from wsseg_ray import pipeline, recipe
from wsseg_ray.doctor import examine
from wsseg_ray.engine import local, training
from wsseg_ray.engine.stage import open_run
from wsseg_ray.errors import RecipeError
from wsseg_ray.stages import features, segmenters
from wsseg_ray.stages.features import Looker, frozen_backbone
from wsseg_ray.stages.stored import map_of, maps_of
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import FEATURES, IMAGES, SCORES, SEGMENTER_FEATURES

pytestmark = pytest.mark.run  # whole runs
FAMILIES = ["test_efficientnet", "test_vit", "pvt_v2_b0"]  # a CNN, a plain ViT, a ViT with several strides


def settings(tiny: list[str], backbone: str, *more: str) -> list[str]:
    own = {"backbone": f"timm:{backbone}", "weights": "null", "freeze": "all"}
    return [
        *tiny,
        *(f"{section}.{key}={value}" for section in ("hcp", "segmentation") for key, value in own.items()),
        "hcp.pooling=context",
        "hcp.loss=binary_cross_entropy",
        "hcp.region_rounds=1",
        "hcp.region_epochs=1",
        "segmentation.head=aspp",
        "segmentation.networks=[AN_A, SN_B, FULL, CAM]",
        "runtime.engine=local",
        *more,
    ]


def run(place, settings: list[str], until: str | None = None) -> RunDirectory:
    outcome = pipeline.run(recipe.load("demo", settings), str(place), until)
    assert outcome.failed == {}
    return RunDirectory.at(str(place)).now()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_run_with_each_family(family, tiny, tmp_path):
    done = run(tmp_path, settings(tiny, family))
    assert done.shards("features", "train") and done.shards("features", "val")
    networks = done.read_json("metrics.json")["networks"]
    assert set(networks) == {"AN_A", "SN_B", "FULL", "CAM", "AN_A_unrefined", "SN_B_unrefined"}
    assert all(0 <= entry["val"]["miou_crf"] <= 100 for entry in networks.values())


@pytest.fixture(scope="module")
def lite(tiny, tmp_path_factory) -> tuple[list[str], RunDirectory]:
    """A run up to the scores with stored features of a CNN."""
    own = settings(tiny, "test_efficientnet", "segmentation.head=decoder", "features={scales: [0.5], mirror: true}")
    return own, run(tmp_path_factory.mktemp("lite"), own, "supervise")


def test_what_is_stored_is_what_the_backbone_sees(lite):
    job = open_run(lite[1])
    look = frozen_backbone(job, FEATURES)
    for shard in job.run.shards(FEATURES.folder):
        images = job.run.read_good(IMAGES, shard)
        for image_id, row in job.run.read_good(FEATURES, shard).items():
            seen = features._whole_cells(FEATURES, job, features.PhotoRow(**vars(images[image_id])))
            assert (seen.rows % 16, seen.columns % 16) == (0, 0)
            photo = features.normalise(seen.whole, *features.hcp.colours_of(job.recipe.hcp.backbone))
            with torch.no_grad():
                expected = look(photo)
                mirrored = look(photo.flip(3))
            for name in ("low", "out"):
                torch.testing.assert_close(maps_of(row)[name].float(), expected[name][0], rtol=2e-3, atol=2e-3)
                torch.testing.assert_close(
                    maps_of(row, (1.0, True))[name].float(), mirrored[name][0], rtol=2e-3, atol=2e-3
                )
            assert maps_of(row, (0.5, True)) is not None
            assert map_of(row).shape[1:] == (seen.rows // 16, seen.columns // 16)


def test_photos_that_pass_together_have_the_features_of_each_alone(lite):
    job = open_run(lite[1])
    looker = Looker(FEATURES, job)
    shard = job.run.shards(FEATURES.folder)[0]
    rows = [
        features._whole_cells(FEATURES, job, features.PhotoRow(**vars(row)))
        for row in job.run.read_good(IMAGES, shard).values()
    ]
    assert looker.many is None  # on a CPU nothing is gained
    for row, found in zip(rows, looker._many(rows), strict=True):
        alone = looker(row)
        np.testing.assert_array_equal(found.shapes, alone.shapes)
        np.testing.assert_allclose(found.maps.astype(float), alone.maps.astype(float), rtol=5e-3, atol=5e-3)


def test_photos_of_unlike_sizes_pass_a_gpu_on_one_canvas(lite, monkeypatch):
    """Here on a CPU, with a network that a GPU would see all sizes of at once."""
    sizes = [(96, 64), (64, 96), (96, 64), (80, 80), (96, 96)]
    rng = np.random.default_rng(0)
    rows = [
        features.CellsRow(str(place), rows=h, columns=w, whole=rng.integers(0, 256, (h, w, 3), np.uint8))
        for place, (h, w) in enumerate(sizes)
    ]
    own = recipe.load("demo", [*lite[0], "hcp.backbone=timm:resnet18", "segmentation.backbone=timm:resnet18"])
    looker = Looker(FEATURES, replace(open_run(lite[1]), recipe=own))
    calls = []

    def recorded(batches):
        calls.append([tuple(photos.shape) for photos in batches])
        return looker._backbone.levels_together(batches)

    monkeypatch.setattr(looker._backbone, "levels_by_size", recorded)
    for row, found in zip(rows, looker._many(rows), strict=True):
        alone = looker._backbone(features.normalise(row.whole))
        maps = maps_of(found)
        for level in maps:
            torch.testing.assert_close(maps[level].float(), alone[level][0], rtol=1e-2, atol=1e-2)
    assert calls[0] == [(1, 3, 64, 96), (1, 3, 80, 80), (2, 3, 96, 64), (1, 3, 96, 96)]


def test_photos_share_a_canvas_while_it_is_not_much_larger_than_they_are(monkeypatch):
    assert list(features.together({(400, 304): 2, (304, 400): 1})) == [[((304, 400), 1), ((400, 304), 2)]]
    assert list(features.together({(10, 10): 2, (100, 100): 1})) == [[((10, 10), 2)], [((100, 100), 1)]]
    monkeypatch.setattr(features, "MANY", 250)
    assert list(features.together({(10, 10): 5})) == [[((10, 10), 2)], [((10, 10), 2)], [((10, 10), 1)]]
    assert list(features.together({(20, 20): 2})) == [[((20, 20), 1)], [((20, 20), 1)]]  # each larger than MANY
    assert list(features.together({})) == []


def test_with_and_without_stored_features_the_scores_are_the_same(lite, tmp_path):
    own, stored = lite
    plain = run(tmp_path, [*own, "features.stored=false"], "score")
    assert not plain.shards("features")
    for shard in plain.shards("scores"):
        theirs = stored.read_good(SCORES, shard)
        for image_id, row in plain.read_good(SCORES, shard).items():
            np.testing.assert_allclose(row.scores.astype(float), theirs[image_id].scores.astype(float), atol=0.02)
            np.testing.assert_allclose(row.photo_logits, theirs[image_id].photo_logits, atol=0.05)


def test_a_changed_backbone_is_a_new_look(lite, tmp_path):
    own, stored = lite
    again = copy(stored, tmp_path)
    before = again.results["features"]
    again = run(again.root, [*own, "hcp.image_epochs=2"], "features")
    assert again.results["features"] == before
    other = ["hcp.backbone=timm:test_vit", "segmentation.backbone=timm:test_vit", "segmentation.head=linear"]
    again = run(again.root, [*own, *other], "features")
    assert again.results["features"] != before


def test_segmenters_of_another_backbone_have_features_of_their_own(tiny, tmp_path):
    segmentation = "backbone: 'timm:test_vit', freeze: all, weights: random, head: mlp, networks: [AN_B], epochs: 1"
    done = run(tmp_path, settings(tiny, "test_efficientnet", f"segmentation={{{segmentation}, batch_size: 4}}"))
    assert done.shards(FEATURES.folder) and done.shards(SEGMENTER_FEATURES.folder)
    shard = done.shards(FEATURES.folder)[0]
    ours, theirs = (next(iter(done.read_good(t, shard).values())) for t in (FEATURES, SEGMENTER_FEATURES))
    assert map_of(ours).shape[0] == 112 and map_of(theirs).shape[0] == 64


def test_heads_learn_the_same_on_any_number_of_cores_and_after_a_cut(lite, tmp_path, monkeypatch):
    """On stored features each photo of a step has a thread: the sums do not depend on how many there are."""
    own, stored = lite
    networks = ["segmentation.networks=[SN_B, AN_A, CAM]", "segmentation.ablation=false"]
    done = []
    for cores in (1, 3):
        monkeypatch.setattr(local, "_cores", lambda cores=cores: cores)
        done.append(run(copy(stored, tmp_path / str(cores)).root, [*own, *networks], "train_segmenter"))
    taken, real = [], training.step_by_photo

    def step(*arguments):
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    again = copy(stored, tmp_path / "cut")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "step_by_photo", step)
        run(again.root, [*own, *networks, "runtime.checkpoint_minutes=0"], "train_segmenter")
    done.append(run(again.root, [*own, *networks], "train_segmenter"))
    for name in ("SN_B", "AN_A", "CAM"):
        assert same_weights(done[0], done[1], "segmenters", name, "network.pt")
        assert same_weights(done[0], done[2], "segmenters", name, "network.pt")


def test_features_of_fewer_dimensions(tiny, tmp_path):
    own = settings(tiny, "test_efficientnet", "features.dims=24", "segmentation.networks=[AN_B]", "hcp.region_rounds=0")
    job = open_run(run(tmp_path, own))
    row = next(iter(job.run.read_good(FEATURES, job.run.shards(FEATURES.folder, "train")[0]).values()))
    assert map_of(row).shape[0] == 24
    squares = [map_of(row).float().square().mean() for row in job.run.rows(FEATURES)]
    assert 0.5 < np.mean(squares) < 2  # about 1: the scale that heads start from
    # the trained network itself reduces a photo's features in the same way
    network = segmenters.trained(job, segmenters.networks(job.recipe)[0])
    image = job.run.read_good(IMAGES, "train-00000")[row.image_id]
    seen = features._whole_cells(FEATURES, job, features.PhotoRow(**vars(image)))
    photo = features.normalise(seen.whole, network.mean, network.std)
    torch.testing.assert_close(network.features(photo)["out"][0], map_of(row).float(), rtol=5e-3, atol=5e-3)


def test_more_dimensions_than_features_are_refused(tiny, tmp_path):
    with pytest.raises(RecipeError, match=r"features\.dims: 113 is more than the 112"):
        run(tmp_path, settings(tiny, "test_efficientnet", "features.dims=113"), "features")


def test_a_timm_backbone_can_be_trained_too(tiny, tmp_path):
    done = run(tmp_path, settings(tiny, "test_efficientnet", "hcp.freeze=none", "segmentation.freeze=none"))
    assert not done.shards("features") and "AN_A" in done.read_json("metrics.json")["networks"]


def test_a_photo_on_which_the_backbone_fails_is_told_and_the_others_go_on(tiny, tmp_path, monkeypatch):
    look = Looker._look
    seen = []

    def failing(self, photos):
        seen.append(photos)
        if len(seen) == 3:
            raise RuntimeError("no memory for this photo")
        return look(self, photos)

    monkeypatch.setattr(Looker, "_look", failing)
    own = settings(tiny, "test_efficientnet")
    outcome = pipeline.run(recipe.load("demo", own), str(tmp_path), "score")
    assert outcome.failed == {"features": 1}
    (failure,) = RunDirectory.at(str(tmp_path)).now().read_json("failures", "features.json")
    assert "no memory for this photo" in failure["error"]
    scored = [row.image_id for row in RunDirectory.at(str(tmp_path)).now().rows(SCORES, ["image_id"])]
    assert len(scored) == 23 and failure["image_id"] not in scored


@pytest.mark.slow
def test_a_whole_run_with_timms_own_file_of_weights(tiny, tmp_path):
    file = Path(__file__).parents[3] / "shared" / "weights" / "tf_efficientnet_lite2.safetensors"
    if not file.is_file():
        pytest.skip(f"needs {file.name} beside the project")
    own = settings(tiny, "tf_efficientnet_lite2", f"hcp.weights={file}")
    done = run(tmp_path, own)
    assert done.read_json("metrics.json")["networks"]["FULL"]["val"]["miou"] > 0
    findings = {finding.text for finding in examine(recipe.load("demo", own))}
    assert any(str(file.name) in text and "(25 MB)" in text for text in findings)
