import pytest

from wsseg_ray import recipe
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
    with pytest.raises(recipe.RecipeError) as caught:
        recipe.load("demo", [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_file_that_is_no_recipe(tmp_path):
    for text, word in (("- 1", "sections"), ("a: [", "YAML")):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(recipe.RecipeError, match=word):
            recipe.load(str(tmp_path / "r.yaml"))
    with pytest.raises(recipe.RecipeError, match="demo"):
        recipe.load("no-such-recipe")


def test_fingerprint_follows_the_setting():
    one, other = recipe.load("demo"), recipe.load("demo", ["crf.iterations=3"])
    assert recipe.fingerprint(one.hcp) == recipe.fingerprint(other.hcp)
    assert recipe.fingerprint(one.crf) != recipe.fingerprint(other.crf)
