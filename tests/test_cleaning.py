"""What a changed recipe leaves behind stays until it is cleaned away."""

import pytest

from tests.runs import copy, ran
from wsseg_ray import recipe
from wsseg_ray.cleaning import remove, unused
from wsseg_ray.errors import RecipeError
from wsseg_ray.lease import held
from wsseg_ray.storage import RunDirectory

LOCAL = "runtime.engine=local"


def test_only_results_of_other_fingerprints_are_unused(tmp_path):
    run = RunDirectory(str(tmp_path), {"scores": "0" * 16})
    for folder, name in (("scores", "0" * 16), ("scores", "1" * 16), ("labels-1", "2" * 16), ("notes", "mine")):
        RunDirectory(run.root).write_bytes(b"x", folder, name, "file")
    run.write_json({}, "run.json")
    RunDirectory(run.root).write_bytes(b"x", "old", "train-00000.parquet")
    assert unused(run) == [("labels-1", "2" * 16), ("scores", "1" * 16)]
    remove(run, unused(run))
    left = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert left == {f"scores/{'0' * 16}/file", "notes/mine/file", "old/train-00000.parquet", "run.json"}


def test_nothing_is_removed_under_a_run(tmp_path):
    run = RunDirectory.at(str(tmp_path))
    with held(run), pytest.raises(RecipeError, match="is in use"):
        remove(run, [("scores", "1" * 16)])


@pytest.mark.run
def test_a_change_that_is_taken_back_finds_its_results(tiny_local, tiny, tmp_path, capfd):
    """Nothing is computed a third time, until the results are removed."""
    run = copy(tiny_local[1], tmp_path)
    other = ran(recipe.load("demo", [*tiny, LOCAL, "refinement.keep=farthest"]), run, "supervise")
    assert "kept: results of other settings in predictions, refined, segmenters, supervision" in capfd.readouterr().err
    assert other.results["scores"] == run.results["scores"] and other.results["refined"] != run.results["refined"]
    back = ran(recipe.load("demo", [*tiny, LOCAL]), other, "supervise")
    assert back.results == run.results and capfd.readouterr().err.count("done before") == 6
    assert unused(back) == [(folder, other.results[folder]) for folder in ("refined", "supervision")]
    remove(back, unused(back))
    assert unused(back) == []
    ran(recipe.load("demo", [*tiny, LOCAL, "refinement.keep=farthest"]), back, "supervise")
    assert capfd.readouterr().err.count("done before") == 4
