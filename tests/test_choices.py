"""What `auto` becomes on which machine, and that a run keeps it."""

from pathlib import Path

import pytest

import wsseg_ray
from wsseg_ray import choices, networks
from wsseg_ray.choices import LARGE, LITE2, SMALL, settle
from wsseg_ray.engine import resources
from wsseg_ray.errors import DatasetError, RecipeError
from wsseg_ray.recipe import load

LABELS = "file,labels,split\n" + "".join(f"{i}.jpg,cat,train\n" for i in range(30)) + "v.jpg,cat,val\n"

GIVEN = ["hcp.image_epochs=1", "hcp.hypothesis_epochs=1", "hcp.region_epochs=1", "hcp.decay_every=1"]


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "labels.csv").write_text(LABELS)
    for name in [*range(30), "v"]:
        (tmp_path / f"{name}.jpg").touch()
    return tmp_path


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def as_found(recipe):
    return {choice.key: choice.value for choice in settle(recipe)[1]}


def test_a_folder_without_a_gpu(photos):
    assert as_found(load(str(photos))) == {
        "dataset.layout": "folder",
        "dataset.train_split": "train",
        "dataset.max_side": 400,
        "proposals.backbone": LITE2,
        "hcp.backbone": SMALL,
        "hcp.image_epochs": 15,
        "hcp.hypothesis_epochs": 15,
        "hcp.region_epochs": 4,
        "hcp.decay_every": 10,
        "segmentation.backbone": SMALL,
        "segmentation.epochs": 30,  # of 30 photos; more photos are seen less often
        "segmentation.rounds": 1,
    }


@pytest.mark.parametrize(
    ("downloaded", "reachable", "backbone"), [(True, False, LARGE), (False, True, LARGE), (False, False, SMALL)]
)
def test_with_a_gpu_the_backbone_is_the_best_one_whose_weights_can_be_had(
    photos, monkeypatch, downloaded, reachable, backbone
):
    monkeypatch.setattr(choices, "is_downloaded", lambda repository: downloaded)
    monkeypatch.setattr(choices, "is_reachable", lambda repository: reachable)
    for settings in (["runtime.use_gpu=true"], ["runtime.cluster=[{cpus: 4, gpus: 1}]"], []):
        if not settings:  # the head of a cluster that `ray up` made, which has no GPU
            monkeypatch.setattr(resources, "BOOTSTRAP", Path(__file__).parent.parent / "cluster.yaml")
        found = as_found(load(str(photos), settings))
        assert found["hcp.backbone"] == found["segmentation.backbone"] == backbone
        assert found["dataset.max_side"] == 500


def test_what_is_given_is_not_chosen(photos):
    given = ["hcp.backbone=small", "segmentation.epochs=3", "segmentation.rounds=0", "dataset.max_side=200"]
    recipe, found = settle(load(str(photos), given))
    assert (recipe.hcp.backbone, recipe.segmentation.backbone, recipe.segmentation.epochs) == ("small", "small", 3)
    epochs = [f"hcp.{name}" for name in ("image_epochs", "hypothesis_epochs", "region_epochs", "decay_every")]
    before = ["dataset.layout", "dataset.train_split", "proposals.backbone"]
    assert [choice.key for choice in found] == [*before, *epochs, "segmentation.backbone"]


def test_without_installed_weights_contours_are_of_colour_and_texture(photos, monkeypatch):
    monkeypatch.setattr(choices, "package_file", lambda: None)
    assert as_found(load(str(photos)))["proposals.backbone"] is None


@pytest.mark.parametrize(("count", "epochs"), [(100, [15, 15, 4, 10]), (600, [15, 15, 4, 10]), (3131, [3, 3, 1, 2])])
def test_hcp_takes_as_many_steps_for_more_photos(photos, monkeypatch, count, epochs):
    monkeypatch.setattr(choices, "_train_photos", lambda recipe: count)
    found = as_found(load(str(photos)))
    names = ("image_epochs", "hypothesis_epochs", "region_epochs", "decay_every")
    assert [found[f"hcp.{name}"] for name in names] == epochs


@pytest.mark.parametrize(("count", "rounds"), [(1000, 1), (1001, 0)])
def test_few_photos_are_learned_from_twice(photos, monkeypatch, count, rounds):
    monkeypatch.setattr(choices, "_train_photos", lambda recipe: count)
    assert as_found(load(str(photos)))["segmentation.rounds"] == rounds


def test_a_run_keeps_its_choices(photos):
    kept = {"hcp.backbone": "small", "dataset.max_side": None}
    recipe, found = settle(load(str(photos)), kept)
    assert recipe.hcp.backbone == "small" and recipe.dataset.max_side is None
    assert {choice.reason for choice in found if choice.key in kept} == {"as before"}


@pytest.mark.parametrize(("split", "wanted"), [("train_aug", "train_aug"), ("train", "train")])
def test_the_training_split_of_vocs_layout(tmp_path, split, wanted):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt").touch()
    recipe = load(str(tmp_path), [*GIVEN, "segmentation.epochs=1", "segmentation.rounds=0"])
    assert settle(recipe)[0].dataset.train_split == wanted


def test_the_folder_must_be_given():
    with pytest.raises(DatasetError, match=r"--set dataset\.root=FOLDER"):
        settle(load("best"))


def test_auto_is_not_a_value_of_every_key():
    with pytest.raises(RecipeError, match=r"hcp\.pooling"):
        load("best", ["hcp.pooling=auto"])


@pytest.mark.run
def test_own_photos_with_one_command(tiny, tmp_path, capsys):
    """`wsseg run FOLDER`: the recipe best, its backbone from the installed package, on 24 drawn photos."""
    root = next(setting for setting in tiny if setting.startswith("dataset.root=")).removeprefix("dataset.root=")
    short = ["runtime.engine=local", "proposals.count=60", "segmentation.epochs=2"]
    outcome = wsseg_ray.run(root, tmp_path / "run", [*short, "hcp.image_epochs=2", "hcp.hypothesis_epochs=1"])
    assert outcome.failed == {}
    printed = "".join(capsys.readouterr())
    assert f"hcp.backbone: {SMALL} (no GPU)" in printed and "dataset.layout: voc" in printed
    assert wsseg_ray.load(tmp_path / "run", "AN_B").predict(f"{root}/JPEGImages/demo_val_00000.jpg").ndim == 2
    with pytest.raises(RecipeError, match="give the size, such as --size 300x400"):
        networks.export(str(tmp_path / "run"), "AN_B", "torchscript", tmp_path / "net.ts")
    again = wsseg_ray.run(root, tmp_path / "run", [*short, "hcp.image_epochs=2", "hcp.hypothesis_epochs=1"])
    assert again.failed == {} and f"hcp.backbone: {SMALL} (as before)" in "".join(capsys.readouterr())
