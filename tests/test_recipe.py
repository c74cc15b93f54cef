from importlib import resources
from types import SimpleNamespace

import pytest
import yaml

from wsseg_ray import pipeline, recipe
from wsseg_ray.datasets import Listing
from wsseg_ray.errors import RecipeError
from wsseg_ray.segmentation.objectives import OBJECTIVES


def test_every_shipped_recipe_is_valid_and_described():
    for name, description in recipe.shipped().items():
        overrides = [] if name == "demo" else ["dataset.root=/data"]
        recipe.load(name, overrides)
        assert len(description) > 10


def test_every_rival_has_its_objective():
    assert {*recipe.RIVALS, recipe.CAM} == set(OBJECTIVES)
    settings = [f"segmentation.networks=[{', '.join(recipe.RIVALS)}]"]
    assert recipe.load("demo", settings).segmentation.networks == list(recipe.RIVALS)


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
        ("hcp.freeze=14", ["hcp.freeze", "0 to 13"]),
        ("hcp.freeze=some", ["hcp.freeze"]),
        ("hcp.freeze=6", ["hcp.freeze", "5 conv layers"]),
        ("hcp.clustered_boxes=9", ["hcp", "clustered_boxes 9", "hypotheses 10"]),
        ("hcp.momentum=1", ["hcp.momentum"]),
        ("supervision.pool=kept", ["supervision.pool", "'candidates'"]),
        ("segmentation.freeze=20", ["segmentation.freeze"]),
        ("segmentation.networks=[SN_B, SN_B]", ["segmentation.networks", "once"]),
        ("proposals.source=mcg", ["proposals.root"]),
        ("refinement={engine: moments, metric: cosine}", ["faiss"]),
        ("hcp.weights=imagenet", ["hcp.weights", "VGG-16"]),
        ("segmentation.model=deeplab_largefov", ["segmentation.weights", "vgg16"]),
        ("segmentation.model=fcn_resnet50", ["segmentation.weights", "'resnet50'"]),
        ("segmentation={model: fcn_resnet50, weights: null, freeze: 3}", ["segmentation.freeze", "none or all"]),
        ("segmentation={model: deeplab_small, weights: imagenet}", ["segmentation.weights", "torchvision"]),
        ("segmentation.model=deeplab_v9", ["segmentation.model", "deeplabv3_resnet50"]),
        ("segmentation.networks=[SN_C]", ["segmentation.networks", "'CAM'"]),
        ("prediction.scales=[]", ["prediction.scales"]),
        ("prediction.scales=[1, 0]", ["prediction.scales"]),
        ("dataset.layout=voc", ["dataset.root"]),
        ("dataset.classes=[a, a]", ["dataset.classes"]),
        ("seed", ["section.key=value"]),
        ("seed=[", ["YAML"]),
    ],
)
def test_a_mistake_is_named(override, words):
    with pytest.raises(RecipeError) as caught:
        recipe.load("demo", [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)


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
    "proposals.weights": ("imagenet", "ours: of our generator alone"),
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
    "supervision.regions": (10, "Sec. 3.3.2"),
    "supervision.pool": ("all", "Sec. 3.3.2: the region proposals generated by MCG"),
    "supervision.normalize": ("none", "Eq. (2)"),
    "supervision.min_area": (0.0, "Sec. 3.3.2: no bound"),
    "supervision.ranking": ("sum", "Eq. (5)"),
    "supervision.threshold": (0.3, "of ranking map_iou alone"),
    "segmentation.networks": (["AN_A", "SN_A", "AN_B", "SN_B"], "Sec. 4.2"),
    "segmentation.ablation": (False, "Sec. 4.3.2 has it as an extra experiment"),
    "segmentation.model": ("deeplab_largefov", "Sec. 3.3.1"),
    "segmentation.weights": ("imagenet", "Sec. 4.2"),
    "segmentation.freeze": ("none", "Sec. 4.2: all weighted layers"),
    "segmentation.epochs": (15, "Sec. 4.2"),
    "segmentation.batch_size": (8, "Sec. 4.2"),
    "segmentation.crop": (321, "[7]"),
    "segmentation.learning_rate": (0.001, "Sec. 4.2"),
    "segmentation.decay_every": (5, "Sec. 4.2"),
    "segmentation.momentum": (0.9, "Sec. 4.2"),
    "segmentation.weight_decay": (0.0005, "Sec. 4.2"),
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


def flat(data: dict, before: str = "") -> dict:
    """The values of nested sections, by `section.key`."""
    found = {}
    for key, value in data.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return found


def result_bearing() -> list[str]:
    """Every key of the recipe but those of `runtime`, which changes no result."""
    return list(flat(recipe.Recipe.model_construct().model_dump(exclude={"runtime"})))


def test_the_papers_recipe_states_every_setting_with_the_papers_value():
    file = resources.files("wsseg_ray") / "recipes" / "paper-voc12.yaml"
    stated = flat(yaml.safe_load(file.read_text()))
    assert sorted(stated) == sorted(result_bearing())  # nothing is left to a default
    expected = {key: value for key, (value, _) in PAPER.items()}
    assert stated == expected
    loaded = flat(recipe.load("paper-voc12", ["dataset.root=/data"]).model_dump(exclude={"runtime"}))
    assert loaded == expected | {"dataset.root": "/data"}


def test_the_papers_recipe_gives_a_reason_for_every_setting():
    lines = (resources.files("wsseg_ray") / "recipes" / "paper-voc12.yaml").read_text().splitlines()
    assert [line for line in lines if line.startswith(" ") and " # " not in line] == []


def marks(loaded: recipe.Recipe) -> dict[str, str]:
    """The fingerprint of each stage's own settings."""
    job = SimpleNamespace(recipe=loaded, listing=Listing([], [], []))
    return {name: recipe.fingerprint(stage.settings(job)) for name, stage in pipeline.STAGES.items()}


def changed(value: object, path: list[str]) -> object:
    """A section with another value at the path; the value itself where the path is empty."""
    if path:
        return value.model_copy(update={path[0]: changed(getattr(value, path[0]), path[1:])})
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, value[0]] if isinstance(value, list) else "another"


# The other keys of `dataset` say which photos there are, and the listing is part of what stage `images` depends on.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    "key", [key for key in result_bearing() if not key.startswith("dataset.") or key == "dataset.max_side"]
)
def test_every_setting_that_changes_a_result_is_in_a_stages_fingerprint(key):
    loaded = recipe.load("paper-voc12", ["dataset.root=/data"])
    assert marks(loaded) != marks(changed(loaded, key.split(".")))


def test_candidates_are_part_of_training_where_regions_learn_from_them():
    rounds = ["hcp.loss=binary_cross_entropy", "hcp.region_rounds=1"]
    for settings, same in (([], True), (rounds, False)):
        first, second = (recipe.load("demo", [*settings, f"hcp.threshold={value}"]) for value in (0.4, 0.5))
        assert (marks(first)["train_hcp"] == marks(second)["train_hcp"]) is same
        assert marks(first)["score"] != marks(second)["score"]
