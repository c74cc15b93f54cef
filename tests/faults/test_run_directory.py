"""What may happen to a run directory between two sessions: no row is lost, there twice, or mixed with others."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.runs import TABLES, by_name, copy, cut_off, measured, photos_of, ran, same_rows
from wsseg_ray import pipeline, recipe
from wsseg_ray.lease import LEASE, held
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import PROPOSALS, SCORES

LOCAL = "runtime.engine=local"
pytestmark = pytest.mark.run


def demo(tiny: list[str], *settings: str) -> recipe.Recipe:
    return recipe.load("demo", [*tiny, LOCAL, *settings])


def test_a_late_task_of_an_older_run_mixes_nothing(tiny_local, tiny, tmp_path):
    """It writes a shard of the old settings while the new run works: into the folder of the old settings."""
    old = copy(tiny_local[1], tmp_path)
    shard = old.shards("scores", "train")[0]
    late = old.read_shard(SCORES, shard)
    new = ran(demo(tiny, "hcp.threshold=0.3"), old, "score")
    assert new.results["scores"] != old.results["scores"]
    new.delete("scores", f"{shard}.parquet")
    old.write_shard(SCORES, shard, late)  # the late task
    again = ran(demo(tiny, "hcp.threshold=0.3"), new, "score")
    (tmp_path / "undisturbed").mkdir()
    undisturbed = ran(demo(tiny, "hcp.threshold=0.3"), copy(tiny_local[1], tmp_path / "undisturbed"), "score")
    assert same_rows(again, undisturbed, SCORES)


def test_a_second_run_is_refused_and_the_first_goes_on(tiny_local, tiny, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    words = [word for setting in [*tiny, LOCAL] for word in ("--set", setting)]
    with held(run):
        second = [sys.executable, "-m", "wsseg_ray", "run", "demo", "--run-dir", run.root, *words]
        found = subprocess.run(second, capture_output=True, text=True, check=False)
        assert found.returncode == 2 and "is in use by process" in found.stderr and "Traceback" not in found.stderr
    assert same_rows(run, tiny_local[1], SCORES) and not run.exists(LEASE)


def test_a_table_that_is_half_deleted_is_made_whole(tiny_local, tiny, tmp_path):
    """A shard of each table, and what the stages say of themselves."""
    run = copy(tiny_local[1], tmp_path)
    for table in TABLES:
        run.delete(table.folder, f"{run.shards(table.folder)[0]}.parquet")
        run.delete(table.folder, "stage.json")
    run = ran(demo(tiny), run)
    assert all(same_rows(run, tiny_local[1], table) for table in TABLES)
    assert measured(run) == measured(tiny_local[1])


def test_the_projection_of_scores_alone_is_lost(tiny_local, tiny, tmp_path):
    """It is fitted anew, to the same numbers: rows that are there and rows that are made now fit together."""
    run = copy(tiny_local[1], tmp_path)
    run.delete("scores", "pca.npz")
    cut_off(run, "score", f"scores/{run.shards('scores', 'train')[0]}.parquet")
    run = ran(demo(tiny), run, "score")
    assert same_rows(run, tiny_local[1], SCORES)


def test_a_run_directory_of_an_older_version(tiny_local, tiny, tmp_path, capfd):
    """Its tables lay in the folders themselves. They are told of, not read, and stay."""
    run = RunDirectory.at(str(tmp_path / "old"))
    run.write_shard(PROPOSALS, "train-00000", tiny_local[1].read_shard(PROPOSALS, "train-00000")[:1])
    run.write_json({"fingerprint": "x", "state": "done"}, "stages", "proposals.json")
    run.write_json({"classes": ["x"], "stages": ["images"], "choices": {}}, "run.json")
    found = ran(demo(tiny), run, "proposals")
    assert "results of an older version of wsseg_ray lie in the run directory too" in capfd.readouterr().err
    assert same_rows(found, tiny_local[1], PROPOSALS) and run.shards("proposals") == ["train-00000"]


def test_photos_that_changed_between_two_stages_are_failures_of_their_own(tiny, tmp_path):
    """One became another photo of the same size, one has another size: later stages do not score them against the old
    regions. The others are not touched."""
    files, settings = photos_of(tiny)
    for name, data in files.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    own = [*settings, LOCAL, f"dataset.root={tmp_path}/photos", "features.stored=false"]
    before = ran(recipe.load("demo", own), RunDirectory.at(str(tmp_path / "run")), "train_hcp")
    first, second = sorted(by_name(before, PROPOSALS))[:2]
    for name, turned in ((first, False), (second, True)):
        photo = Image.open(io.BytesIO(files[f"JPEGImages/{name}.jpg"]))
        other = 255 - np.asarray(photo)
        Image.fromarray(other.swapaxes(0, 1) if turned else other).save(tmp_path / f"photos/JPEGImages/{name}.jpg")
    outcome = pipeline.run(recipe.load("demo", own), before.root, "score")
    assert outcome.failed == {"score": 2}
    failures = before.now().read_json("failures", "score.json")
    assert {failure["image_id"] for failure in failures} == {first, second}
    assert all("the photo was changed since stage images" in failure["error"] for failure in failures)
