"""The contract: what a job is, and what travels with it."""

import pickle
import sys

import numpy as np
import pytest

from tests.runs import empty_job
from wsseg_ray.datasets import Listing, Photo
from wsseg_ray.engine.stage import Job, Stage, as_seen_by, open_run, photo_number, with_replacements
from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import dump, load
from wsseg_ray.tables import IMAGES, SUPERVISION


def stage(name: str, writes: str = "", **more) -> Stage:
    return Stage(name, (), writes or name, lambda job, runner: 0, **more)


def test_a_job_travels_without_its_photos(tmp_path):
    """Every task is sent one; a listing of a million photos must not go with it."""
    photos = [Photo(f"photo{i}", f"/photo{i}.jpg", (0,), "train") for i in range(1000)]
    job = Job(empty_job(tmp_path).run, load("demo"), Listing(["a", "b"], [1, 7], photos))
    data = pickle.dumps(job)
    there = pickle.loads(data)
    assert len(data) < 10_000 and there.listing.photos == []
    assert (there.classes, there.listing.mask_values, there.run) == (["a", "b"], [1, 7], job.run)
    assert there.recipe == job.recipe


def test_a_job_brings_the_users_own_modules(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    job = empty_job(tmp_path)
    job.code.append(str(tmp_path / "code"))
    data = pickle.dumps(job)
    assert str(tmp_path / "code") not in sys.path
    pickle.loads(data)
    assert str(tmp_path / "code") in sys.path


def test_a_replaced_table_is_read_from_elsewhere(tmp_path):
    stages = [stage("images"), stage("mine", after="supervise", replaces="supervision"), stage("looks", after="mine")]
    job = with_replacements(empty_job(tmp_path), stages)
    assert job.replaced == {"supervision": "mine"}
    assert job.table(SUPERVISION).folder == "mine" and job.table(SUPERVISION).row is SUPERVISION.row
    assert job.table(IMAGES) == IMAGES


def test_earlier_stages_and_the_one_that_replaces_read_the_table_itself(tmp_path):
    stages = [stage("images"), stage("mine", replaces="images"), stage("second", replaces="images"), stage("last")]
    seen = [as_seen_by(one, empty_job(tmp_path), stages).table(IMAGES).folder for one in stages]
    assert seen == ["images", "images", "mine", "second"]


def test_a_stage_without_a_run_works_on_the_photos_of_the_first_table_that_it_reads(tmp_path):
    """Of its split; and of the table that is put in the place of that one."""

    class Runner:
        def map_shards(self, job, stage, work, shards):
            return list(shards), work

    job = empty_job(tmp_path)
    for folder, name in (("images", "train-0"), ("images", "val-0"), ("mine", "train-7")):
        job.run.write_bytes(b"", folder, f"{name}.parquet")
    for split, shards in (("train", ["train-0"]), ("val", ["val-0"]), ("all", ["train-0", "val-0"])):
        assert plain("look", split=split).do(job, Runner()) == (shards, "work")
    stages = [stage("images"), stage("mine", replaces="images"), plain("look")]
    assert stages[2].do(as_seen_by(stages[2], job, stages), Runner()) == (["train-7"], "work")


def plain(name: str, **more) -> Stage:
    return Stage(name, ("images",), name, work=lambda job: "work", **more)


def test_a_run_is_opened(tmp_path):
    run, recipe = empty_job(tmp_path).run, load("demo", ["seed=3"])
    with pytest.raises(RecipeError, match=r"is no run: it holds no recipe\.yaml and run\.json"):
        open_run(run.root)
    run.write_bytes(dump(recipe).encode(), "recipe.yaml")
    about = {
        "classes": ["a"],
        "mask_values": [5],
        "stages": {},
        "results": {},
        "code": [str(tmp_path / "gone")],
        "replaced": {"a": "b"},
    }
    run.write_json({key: about[key] for key in about if key != "results"}, "run.json")
    with pytest.raises(RecipeError, match="was made by an older version"):
        open_run(run.root)
    run.write_json(about, "run.json")
    job = open_run(run.root)
    assert job == open_run(run)
    assert (job.recipe, job.classes, job.listing.mask_values, job.replaced) == (recipe, ["a"], [5], {"a": "b"})
    assert job.listing.photos == [] and str(tmp_path / "gone") not in sys.path


def test_the_number_of_a_photo():
    """The same on every machine and for ever: runs that go on draw by it. It fits into a table, and into NumPy."""
    assert photo_number("2007_000027") == 65717012775788512
    numbers = [photo_number(f"photo {i}") for i in range(1000)]
    assert len(set(numbers)) == 1000 and all(0 <= number < 2**56 for number in numbers)
    np.random.default_rng([0, numbers[0]])


def test_rounds_share_their_resources():
    assert stage("relabel-2").resources == "relabel" and stage("train_segmenter").resources == "train_segmenter"


def test_a_stage_of_tasks_has_no_network():
    recipe = load("demo")
    assert not stage("a").has_network(recipe)
    assert stage("a", workers=lambda recipe: "actors").has_network(recipe)
    assert stage("a", workers=lambda recipe: "trainers").has_network(recipe)
