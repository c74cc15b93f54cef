"""Published numbers, and how they are run again."""

from pathlib import Path

import pytest

from wsseg_ray import reproduce
from wsseg_ray.cli import app
from wsseg_ray.errors import DatasetError, RecipeError
from wsseg_ray.recipe import load
from wsseg_ray.reproduce import Found, Published, chosen, claims, digest, subset, table

ROOT = Path(__file__).parent.parent
ANIMALS = ROOT / "../shared/data/voc-animals/VOCdevkit/VOC2012"


@pytest.fixture
def voc(tmp_path):
    """Ten training photos, of which those with an even number have masks, and two val photos."""
    root = tmp_path / "voc"
    for folder in ("ImageSets/Segmentation", "ImageSets/Main", "JPEGImages", "SegmentationClassAug"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("".join(f"p{n}\n" for n in range(10)))
    (root / "ImageSets/Segmentation/val.txt").write_text("v0\nv1\n")
    for n in range(0, 10, 2):
        (root / f"SegmentationClassAug/p{n}.png").touch()
    return root


def test_every_claim_is_a_recipe_and_says_when_and_where_it_was_measured():
    for name, claim in claims().items():
        assert claim.name == name and claim.figures and claim.seeds and claim.minutes > 0
        assert load(claim.recipe, claim.settings)
        assert all(
            one.low <= one.value <= one.high and one.tolerance >= claim.tolerance for one in claim.figures.values()
        )


def test_results_have_the_table_of_the_claims():
    text = (ROOT / "RESULTS.md").read_text()
    assert [line for line in table() if line not in text] == []


@pytest.mark.parametrize(("values", "agrees"), [([70.0], True), ([68.4, 68.6], True), ([68.4], False), ([71.6], False)])
def test_a_mean_agrees_within_the_tolerance(values, agrees):
    assert Found("AN_B", Published(70.0, 69.0, 71.0, 1.5), values).agrees is agrees


@pytest.mark.parametrize(
    ("count", "names"),
    [(1, "p0"), (2, "p0 p4"), (5, "p0 p2 p4 p6 p8"), (7, "p0 p1 p2 p4 p5 p6 p8"), (10, None), (50, None)],
)
def test_photos_with_masks_come_first(voc, count, names):
    assert chosen(voc, count) == (names.split() if names else [f"p{n}" for n in range(10)])


def test_a_subset_is_a_data_set_of_the_same_photos(voc, tmp_path):
    for _ in range(2):  # a run that goes on makes it again
        made = subset(voc, tmp_path / "some", 2)
    assert (made / "ImageSets/Segmentation/train_aug.txt").read_text() == "p0\np4\n"
    assert (made / "ImageSets/Segmentation/val.txt").read_text() == "v0\nv1\n"
    assert (made / "SegmentationClassAug/p2.png").exists() and (made / "JPEGImages").is_dir()


def test_what_is_not_the_claims_data_is_refused(voc, tmp_path):
    def again(name, root):
        return reproduce.reproduce(name, root, str(tmp_path / "run"), None, print)

    with pytest.raises(RecipeError, match=r"nothing: no such claim; there are .*animals-600.*demo"):
        again("nothing", None)
    with pytest.raises(DatasetError, match="animals-600 needs --root, the folder of voc-animals: 3,131 photos"):
        again("animals-600", None)
    with pytest.raises(DatasetError, match=r"is not voc-animals.*its lists name 12 photos"):
        again("animals-600", str(voc))
    with pytest.raises(DatasetError, match=r"has no ImageSets/Segmentation/train_aug.txt"):
        again("animals-600", str(tmp_path))


@pytest.mark.run
@pytest.mark.parametrize(("low", "code", "said"), [(0.0, 0, "agrees"), (200.0, 1, "DOES NOT AGREE")])
def test_a_claim_is_run_again(tiny, tmp_path, monkeypatch, capsys, low, code, said):
    """A tiny one, that nobody published: the exit code says whether it agrees."""
    claim = {
        "about": "tiny",
        "recipe": "demo",
        "settings": [*tiny, "runtime.engine=local"],
        "data": "",
        "photos": None,
        "backbone": "small",
        "seeds": [0],
        "minutes": 1,
        "machine": "any",
        "date": "2026-11-27",
        "commit": "none",
        "tolerance": 100,
        "figures": {"SN_B": [low], "SN_B + CRF": [low]},
    }
    monkeypatch.setattr(reproduce, "_file", lambda: {"data": {}, "claims": {"tiny": claim}})
    with pytest.raises(SystemExit) as ended:
        app(["reproduce", "tiny", "--run-dir", str(tmp_path / "run")], standalone_mode=True)
    out = capsys.readouterr().out
    assert (
        ended.value.code == code and out.rstrip().endswith(said) and "tiny, seed 0; a seed took 1 minutes on any" in out
    )


@pytest.mark.slow
@pytest.mark.skipif(not ANIMALS.is_dir(), reason="../shared/data/voc-animals is not there")
def test_the_data_at_hand_is_that_of_the_claims():
    names = [name for split in reproduce.SPLITS for name in reproduce._names(ANIMALS, split)]
    assert digest(names) == reproduce._file()["data"]["voc-animals"]["digest"]


@pytest.mark.long
def test_the_smallest_claim_is_reproduced(tmp_path):
    """The demo: the whole of it, so minutes."""
    assert all(one.agrees for one in reproduce.reproduce("demo", None, str(tmp_path / "run"), None, print))
