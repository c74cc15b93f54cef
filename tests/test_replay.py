"""A stage computed again from what a run stores: equal, or it says what differs. Nothing is written."""

import numpy as np
import pytest

from tests.runs import copy
from wsseg_ray import pipeline, replay
from wsseg_ray.engine.stage import open_run
from wsseg_ray.errors import RecipeError
from wsseg_ray.tables import SUPERVISION

pytestmark = pytest.mark.run  # it computes all stages again
MAPPED = ("images", "proposals", "score", "refine", "supervise", "predict")


def files(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage", MAPPED)
def test_a_stage_gives_what_the_run_has(tiny_local, stage):
    results = list(replay.replay(tiny_local[1].root, stage))
    expected = 24 if stage in ("images", "score") else 12
    assert len(results) == expected and not any(differences for _, differences in results)
    assert replay.summary(stage, results) == [f"{stage}: {expected} of {expected} photos are equal to what the run has"]


def test_every_mapped_stage_is_tried(tiny_local):
    stages = pipeline.stages_of(open_run(tiny_local[1].root).recipe)
    assert tuple(stage.name for stage in stages if stage.work is not None) == MAPPED


def test_nothing_is_written(tiny_local, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    before = files(tmp_path)
    for stage in ("supervise", "predict"):
        list(replay.replay(run.root, stage))
    assert files(tmp_path) == before


def test_what_differs_is_named(tiny_local, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    shard = run.shards("supervision")[0]
    rows = run.read_shard(SUPERVISION, shard)
    changed = rows[0].image_id
    rows[0].maps = rows[0].maps + np.float16(0.25)
    rows[0].mask = rows[0].mask[:-1]
    run.write_shard(SUPERVISION, shard, rows)
    results = list(replay.replay(run.root, "supervise"))
    assert [row.image_id for row, differences in results if differences] == [changed]
    found = {difference.column: difference.largest for _, own in results for difference in own}
    assert found.keys() == {"maps", "mask"}
    assert found["maps"] == pytest.approx(0.25, abs=1e-3) and np.isnan(found["mask"])
    lines = replay.summary("supervise", results)
    assert lines[0].startswith(f"maps: differs in 1 photos ({changed}), by 0.25")
    assert lines[-1] == "supervise: 11 of 12 photos are equal to what the run has"


def test_one_photo(tiny_local):
    ((row, differences),) = replay.replay(tiny_local[1].root, "refine", "demo_train_00003")
    assert row.image_id == "demo_train_00003" and len(row.kept) and not differences


@pytest.mark.parametrize(
    ("stage", "photo", "words"),
    [
        ("train_hcp", None, "is a training"),
        ("nothing", None, "no such stage; there are images, proposals"),
        ("score", "nobody", "has no photo nobody"),
    ],
)
def test_mistakes_are_named(tiny_local, stage, photo, words):
    with pytest.raises(RecipeError, match=words):
        list(replay.replay(tiny_local[1].root, stage, photo))
