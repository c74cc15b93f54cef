from importlib import resources

import pytest
import yaml

from tests.test_fingerprints import KEYS, flat
from wsseg_ray import recipe
from wsseg_ray.errors import RecipeError


def test_every_shipped_recipe_is_valid_and_described():
    assert set(recipe.shipped()) == {"best", "demo", "paper-voc12", "voc12-best"}
    for name, description in recipe.shipped().items():
        recipe.check_variants(recipe.load(name))
        assert len(description) > 10


def test_round_trip(tmp_path):
    loaded = recipe.load("demo", ["seed=3", "dataset.limit=7", "segmentation.networks=[SN_B]"])
    assert (loaded.seed, loaded.dataset.limit, loaded.segmentation.networks) == (3, 7, ["SN_B"])
    (tmp_path / "r.yaml").write_text(recipe.dump(loaded))
    assert recipe.load(str(tmp_path / "r.yaml")) == loaded


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.limitt=3", ["dataset.limitt", "no such key", "max_side"]),
        ("dateset.limit=3", ["dateset", "no such key", "proposals"]),
        ("dataset.limit=0", ["dataset.limit"]),
        ("hcp.freeze=some", ["hcp.freeze"]),
        ("hcp.backbone=vgg17", ["hcp.backbone", "no backbone 'vgg17'", "vgg16, small, torchvision:NAME"]),
        ("hcp.clustered_boxes=9", ["hcp", "clustered_boxes 9", "hypotheses 10"]),
        ("hcp.momentum=1", ["hcp.momentum"]),
        ("proposals.source=selective", ["proposals.source", "generate, mcg, masks"]),
        ("refinement.keep=best", ["refinement.keep", "nearest, farthest"]),
        ("supervision.pool=kept", ["supervision.pool", "'candidates'"]),
        ("supervision.refiners=[max, min]", ["supervision.refiners", "'min'"]),
        ("segmentation.networks=[SN_B, SN_B]", ["segmentation.networks", "once"]),
        ("segmentation.networks=[]", ["segmentation.networks", "at least one"]),
        ("segmentation.networks=[SN_C]", ["segmentation.networks", "'SN_C'", "CAM"]),
        ("segmentation.head=deeplab_v9", ["segmentation.head", "deeplabv3"]),
        ("segmentation.backbone=vgg16", ["null takes HCP's backbone", "'vgg16'", "'small'"]),
        ("prediction.scales=[]", ["prediction.scales"]),
        ("prediction.scales=[1, 0]", ["prediction.scales"]),
        ("dataset.classes=[a, a]", ["dataset.classes"]),
        ("extra_stages=[mine]", ["extra_stages", "module:attribute"]),
        ("runtime.engine=spark", ["runtime.engine", "'local'"]),
        ("runtime.stages.score.cpu=1", ["runtime.stages.score.cpu", "no such key", "cpus"]),
        ("runtime.cluster=[{cpu: 1}]", ["runtime.cluster", "no such key", "cpus"]),
        ("dataset.root=s3://key:secret@bucket/x", ["dataset.root", "a password", "AWS_ACCESS_KEY_ID"]),
        ("proposals.root=s3://key:secret@bucket", ["proposals.root", "a password"]),
        ("hcp.weights=https://me:secret@host/x.pth", ["hcp.weights", "a password"]),
        ("dataset.root=gs://anonymous:secret@bucket", ["dataset.root", "a password"]),
        ("seed", ["section.key=value"]),
        ("seed=[", ["YAML"]),
    ],
)
def test_a_mistake_is_named(override, words):
    with pytest.raises(RecipeError) as caught:
        recipe.load("demo", [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_recipe(tmp_path):
    for text, word in (("- 1", "sections"), ("a: [", "YAML")):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(RecipeError, match=word):
            recipe.load(str(tmp_path / "r.yaml"))
    with pytest.raises(RecipeError, match="demo"):
        recipe.load("no-such-recipe")


def test_fingerprint_follows_the_setting():
    one, other = recipe.load("demo"), recipe.load("demo", ["crf.iterations=3"])
    assert recipe.fingerprint(one.hcp) == recipe.fingerprint(other.hcp)
    assert recipe.fingerprint(one.crf) != recipe.fingerprint(other.crf)


# What `paper-voc12` must say, key by key, and why: a section of the paper; [7] is DeepLab and [30] is HCP, which the
# paper follows where it gives no value of its own; "ours" is a choice that the paper leaves open.
PAPER = {
    "seed": (0, "ours: the paper names none"),
    "dataset.layout": ("voc", "Sec. 4.1"),
    "dataset.root": (None, "the user's folder"),
    "dataset.classes": (None, "Sec. 4.1: VOC's 20"),
    "dataset.train_split": ("paper", "Sec. 4.1: train_aug and the classification trainval in common, 10,269 photos"),
    "dataset.val_split": ("val", "Sec. 4.1"),
    "dataset.limit": (None, "Sec. 4.1: all photos"),
    "dataset.max_side": (None, "Sec. 4.1: photos as they are"),
    "proposals.source": ("generate", "Sec. 3.1: MCG; source mcg reads its files, our generator needs none"),
    "proposals.root": (None, "of source mcg alone"),
    "proposals.count": (2000, "Sec. 3.1: about 2,000"),
    "proposals.backbone": ("vgg16", "ours: of our generator alone"),
    "proposals.weights": ("imagenet", "ours: of our generator alone"),
    "proposals.sam": (None, "the paper has no masks of another network"),
    "proposals.sam_points": (8, "of sam alone"),
    "features.stored": (True, "ours: without effect where the backbone is trained"),
    "features.scales": ([], "ours: without effect"),
    "features.mirror": (False, "ours: without effect"),
    "features.dims": (None, "ours: without effect"),
    "hcp.backbone": ("vgg16", "Sec. 4.2"),
    "hcp.weights": ("imagenet", "Sec. 4.2"),
    "hcp.pooling": ("warp", "Sec. 3.1, Figure 2: the CNN sees each proposal"),
    "hcp.random_fc6_scale": (0.1, "ours: without effect where fc6 starts from ImageNet"),
    "hcp.freeze": ("none", "Sec. 4.2: all weighted layers"),
    "hcp.image_epochs": (15, "Sec. 4.2: about 30 for both steps"),
    "hcp.hypothesis_epochs": (15, "Sec. 4.2: about 30 for both steps"),
    "hcp.region_rounds": (0, "the paper has no such step"),
    "hcp.region_epochs": (4, "without effect at 0 rounds"),
    "hcp.hypotheses": (10, "Sec. 3.1"),
    "hcp.clustered_boxes": (300, "ours: [30] sets no bound"),
    "hcp.min_area": (900, "[30]"),
    "hcp.max_aspect": (4.0, "[30]"),
    "hcp.batch_size": (30, "Sec. 4.2"),
    "hcp.learning_rate": (0.0001, "Sec. 4.2"),
    "hcp.image_last_learning_rate": (0.01, "Sec. 4.2"),
    "hcp.hypothesis_last_learning_rate": (0.001, "Sec. 4.2"),
    "hcp.decay_every": (10, "Sec. 4.2"),
    "hcp.momentum": (0.9, "Sec. 4.2"),
    "hcp.weight_decay": (0.0005, "Sec. 4.2"),
    "hcp.loss": ("squared", "[30]"),
    "hcp.threshold": (0.5, "Sec. 3.1"),
    "hcp.min_candidates": (10, "ours: the paper does not say"),
    "refinement.enabled": (True, "Sec. 3.2"),
    "refinement.engine": ("auto", "exact for Eq. (1)"),
    "refinement.metric": ("squared_l2", "Eq. (1)"),
    "refinement.keep": ("farthest", "Sec. 3.2: in a descending order"),
    "refinement.fraction": (0.5, "Sec. 3.2: the top half"),
    "refinement.pca_energy": (0.98, "Sec. 3.2"),
    "refinement.pca_dims": (512, "Sec. 3.2"),
    "refinement.pca_photos": (64, "ours: the paper does not say"),
    "refinement.pca_candidates": (64, "ours: the paper does not say"),
    "supervision.reading": ("votes", "Sec. 3.3.1"),
    "supervision.mask": ("regions", "Sec. 3.3.2"),
    "supervision.regions": (10, "Sec. 3.3.2"),
    "supervision.pool": ("all", "Sec. 3.3.2: the region proposals generated by MCG"),
    "supervision.refiners": ([], "Eq. (2)"),
    "supervision.min_area": (0.0, "Sec. 3.3.2: no bound"),
    "supervision.ranking": ("sum", "Eq. (5)"),
    "supervision.threshold": (0.3, "of ranking map_iou alone"),
    "supervision.background_below": (0.25, "of mask sure alone"),
    "supervision.object_from": (0.5, "of mask sure alone"),
    "segmentation.networks": (["AN_A", "SN_A", "AN_B", "SN_B"], "Sec. 4.2"),
    "segmentation.ablation": (False, "Sec. 4.3.2 has it as an extra experiment"),
    "segmentation.backbone": ("vgg16", "Sec. 3.3.1"),
    "segmentation.head": ("largefov", "Sec. 3.3.1"),
    "segmentation.weights": ("imagenet", "Sec. 4.2"),
    "segmentation.freeze": ("none", "Sec. 4.2: all weighted layers"),
    "segmentation.epochs": (15, "Sec. 4.2"),
    "segmentation.batch_size": (8, "Sec. 4.2"),
    "segmentation.crop": (321, "[7]"),
    "segmentation.learning_rate": (0.001, "Sec. 4.2"),
    "segmentation.decay_every": (5, "Sec. 4.2"),
    "segmentation.momentum": (0.9, "Sec. 4.2"),
    "segmentation.weight_decay": (0.0005, "Sec. 4.2"),
    "segmentation.balance": (0.0, "Eq. (3): all classes weigh the same"),
    "segmentation.rounds": (0, "Sec. 4.2: each network is trained once"),
    "segmentation.rivals.start_epochs": (4, "ours: of the rivals alone"),
    "segmentation.rivals.max_learning_rate": (0.0001, "[25]: of the rivals alone"),
    "prediction.scales": ([1.0], "[7]"),
    "prediction.mirror": (False, "[7]"),
    "crf.enabled": (True, "Sec. 3.3.1: DeepLab-CRF"),
    "crf.iterations": (10, "[7]"),
    "crf.bilateral_weight": (4.0, "[7]"),
    "crf.bilateral_xy": (121.0, "[7]"),
    "crf.bilateral_rgb": (5.0, "[7]"),
    "crf.spatial_weight": (3.0, "[7]"),
    "crf.spatial_xy": (3.0, "[7]"),
}


def test_the_papers_recipe_states_every_setting_with_the_papers_value():
    file = resources.files("wsseg_ray") / "recipes" / "paper-voc12.yaml"
    stated = flat(yaml.safe_load(file.read_text()))
    assert sorted(stated) == sorted(KEYS)  # nothing is left to a default
    expected = {key: value for key, (value, _) in PAPER.items()}
    assert stated == expected
    loaded = flat(recipe.load("paper-voc12", ["dataset.root=/data"]).model_dump(exclude={"runtime", "extra_stages"}))
    assert loaded == expected | {"dataset.root": "/data"}


def test_the_papers_recipe_gives_a_reason_for_every_setting():
    lines = (resources.files("wsseg_ray") / "recipes" / "paper-voc12.yaml").read_text().splitlines()
    assert [line for line in lines if line.startswith(" ") and " # " not in line] == []


def test_voc12_best_follows_best():
    """Apart from the data set and its networks."""
    best, voc = (recipe.load(name).model_dump() for name in ("best", "voc12-best"))
    for found in (best, voc):
        del found["dataset"], found["segmentation"]["networks"]
    assert best == voc


def test_photos_by_their_folder_or_their_labels(tmp_path, monkeypatch):
    folder = tmp_path / "pets"
    folder.mkdir()
    (folder / "labels.csv").write_text("file,labels\n")
    for name in (str(folder), str(folder / "labels.csv")):
        assert recipe.load(name).dataset.root == str(folder) and recipe.load(name).hcp == recipe.load("best").hcp
        assert recipe.run_name(name) == "pets"
    monkeypatch.chdir(folder)
    assert recipe.load("labels.csv").dataset.root == str(folder) and recipe.run_name(".") == "pets"
    assert (recipe.run_name("best"), recipe.run_name("mine/own.yaml")) == ("best", "own")
    (folder / "pets.csv").write_text("file,labels\n")
    for name in ("pets.csv", "labels.json"):
        with pytest.raises(RecipeError, match=r"its name must be one of labels\.csv, labels\.json"):
            recipe.load(name)


def test_a_recipe_may_be_json(tmp_path):
    (tmp_path / "own.json").write_text('{"seed": 7}')
    assert recipe.load(str(tmp_path / "own.json")).seed == 7 and recipe.run_name("own.json") == "own"
