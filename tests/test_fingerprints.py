"""Each key of the recipe belongs to one stage, and changes that stage and what is made from it: nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runs import empty_job, settled
from wsseg_ray import pipeline, recipe
from wsseg_ray.datasets import Listing, Photo
from wsseg_ray.engine.stage import Job, Stage
from wsseg_ray.errors import RecipeError

ROUNDS = "segmentation.rounds=2"
CAM = "segmentation.networks=[SN_B, CAM]"
REGIONS = ("hcp.loss=binary_cross_entropy", "hcp.region_rounds=1")
RECIPES = {
    **{name: settled(name) for name in recipe.shipped()},
    "rounds": recipe.load("demo", [ROUNDS]),
    "cam": recipe.load("demo", [CAM]),
    "cam in rounds": recipe.load("demo", [ROUNDS, CAM]),
    "region rounds": recipe.load("demo", [*REGIONS]),
}
NO_RESULT = ("runtime", "extra_stages")  # they say how a recipe runs, and which stages there are


def flat(data: dict, before: str = "") -> dict:
    """The values of nested sections, by `section.key`."""
    found = {}
    for key, value in data.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return found


KEYS = [key for key in flat(recipe.load("demo").model_dump()) if key.split(".")[0] not in NO_RESULT]


def owners(loaded: recipe.Recipe) -> dict[str, str]:
    """The stage of each key. A key that belonged to two would be there once: that it is there says that it has one."""
    owned = pipeline.owned(loaded, pipeline.stages_of(loaded))
    pairs = [(key, stage) for stage, keys in owned.items() for key in keys]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_belongs_to_one_stage(name):
    loaded = RECIPES[name]
    found, stages = owners(loaded), pipeline.stages_of(loaded)
    covered = {section for stage in stages for section in stage.covers}
    assert covered == {"dataset"}, "which photos there are: stage images depends on the listing itself"
    free = {key for key in KEYS if key not in found}
    unused = set() if "features" in {stage.name for stage in stages} else {"features"}  # no backbone is frozen
    assert {key.split(".")[0] for key in free} == {"dataset"} | unused and found["dataset.max_side"] == "images"
    assert not any(key.split(".")[0] in NO_RESULT for key in found)


def test_who_owns_what():
    demo, rounds, regions = (owners(RECIPES[name]) for name in ("demo", "cam in rounds", "region rounds"))
    assert demo["seed"] == "train_hcp", "the first stage that draws"
    assert demo["hcp.hypotheses"] == "proposals" and demo["hcp.loss"] == "train_hcp"
    assert (demo["hcp.threshold"], regions["hcp.threshold"]) == ("score", "train_hcp"), "regions learn from candidates"
    assert demo["refinement.pca_dims"] == "score" and demo["refinement.keep"] == "refine"
    assert demo["segmentation.networks"] == "predict" and demo["segmentation.epochs"] == "train_segmenter"
    assert (demo["crf.iterations"], rounds["crf.iterations"]) == ("predict", "relabel-1"), "own labels follow the CRF"
    assert owners(RECIPES["cam"])["crf.iterations"] == "predict", "CAM's first labels do not"


def test_two_stages_with_the_same_claim_are_refused():
    stages = pipeline.stages_of(RECIPES["demo"])
    with pytest.raises(RecipeError, match=r"the stages refine and mine both name refinement in their settings"):
        pipeline.owned(RECIPES["demo"], [*stages, Stage("mine", (), "mine", settings=lambda recipe: ["refinement"])])


def test_the_more_precise_claim_goes():
    mine = Stage("mine", (), "mine", settings=lambda recipe: ["refinement.keep", "crf"])
    owned = pipeline.owned(RECIPES["rounds"], [*pipeline.stages_of(RECIPES["demo"])[:5], mine])
    assert set(owned["mine"]) == {"refinement.keep", *(key for key in KEYS if key.startswith("crf."))}
    assert "refinement.keep" not in owned["refine"] and "refinement.metric" in owned["refine"]


# ---- what changes with a key


def job_of(loaded: recipe.Recipe, tmp_path) -> Job:
    return replace(empty_job(tmp_path), recipe=loaded, listing=Listing(["a"], [1], []))


def changed(value: object, path: list[str]) -> object:
    """A section with another value at the path; the value itself where the path is empty."""
    if path:
        return value.model_copy(update={path[0]: changed(getattr(value, path[0]), path[1:])})
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, value[0]] if isinstance(value, list) and value else "another"


def downstream(owner: str, stages: list[Stage]) -> set[str]:
    """A stage and all that is made from what it writes, also through other stages."""
    found, folders = set(), set()
    for stage in stages:
        reads = {name for name in folders for wanted in stage.reads if name == wanted or name.startswith(f"{wanted}-")}
        if stage.name == owner or reads:
            found.add(stage.name)
            folders.add(stage.writes)
    return found


@pytest.mark.parametrize("name", ["paper-voc12", "cam in rounds", "region rounds"])
def test_a_key_changes_its_stage_and_what_follows_from_it(name, tmp_path):
    loaded = RECIPES[name]
    stages, found = pipeline.stages_of(loaded), owners(loaded)
    before = pipeline.fingerprints(job_of(loaded, tmp_path), stages)
    assert list(before) == [stage.name for stage in stages] and len(set(before.values())) == len(stages)
    for key, owner in found.items():
        if key in ("segmentation.rounds", "hcp.region_rounds"):
            continue  # they say whose some other keys are
        after = pipeline.fingerprints(job_of(changed(loaded, key.split(".")), tmp_path), stages)
        new = {stage for stage in before if after[stage] != before[stage]}
        assert new == downstream(owner, stages), key


@pytest.mark.parametrize("key", ["segmentation.rounds", "hcp.region_rounds"])
def test_and_so_does_the_number_of_rounds(key, tmp_path):
    loaded = RECIPES["demo"]
    stages = pipeline.stages_of(loaded)
    before, after = (
        pipeline.fingerprints(job_of(one, tmp_path), stages) for one in (loaded, changed(loaded, key.split(".")))
    )
    assert after["predict"] != before["predict"] and after["proposals"] == before["proposals"]


def test_what_a_key_changes_in_the_middle():
    stages = pipeline.stages_of(RECIPES["demo"])
    assert downstream("refine", stages) == {"refine", "supervise", "train_segmenter", "predict"}
    assert downstream("train_segmenter", stages) == {"train_segmenter", "predict"}


def test_the_photos_are_part_of_the_first_stage(tmp_path):
    """Another photo, label or mask changes everything; how a run runs changes nothing."""
    job = job_of(RECIPES["demo"], tmp_path)
    stages = pipeline.stages_of(job.recipe)
    before = pipeline.fingerprints(job, stages)
    more = replace(job, listing=Listing(["a"], [1], [Photo("p", "/p.jpg", (0,), "train")]))
    after = pipeline.fingerprints(more, stages)
    assert all(after[name] != before[name] for name in before)
    runtime = recipe.load("demo", ["runtime.num_workers=3", "runtime.engine=local", "runtime.stages.score.cpus=3"])
    assert pipeline.fingerprints(replace(job, recipe=runtime), stages) == before


def test_a_network_more_leaves_the_others_as_they_are(tmp_path):
    """It is trained beside them: the training is not part of what changes, the predictions are."""
    job = job_of(RECIPES["demo"], tmp_path)
    stages = pipeline.stages_of(job.recipe)
    before = pipeline.fingerprints(job, stages)
    after = pipeline.fingerprints(
        replace(job, recipe=recipe.load("demo", ["segmentation.networks=[AN_A, CCNN]"])), stages
    )
    assert [name for name in before if after[name] != before[name]] == ["predict"]
