"""Both engines on the same scored photos, with real Ray."""

import pickle

import numpy as np
import pytest

from wsseg_ray import recipe
from wsseg_ray.datasets import Listing
from wsseg_ray.stages import refine
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.shards import map_shards
from wsseg_ray.tables import RunDirectory


@pytest.fixture
def scored(cluster, tmp_path):
    """Six photos in shards of two, classes 0 and 1, class 2 on one photo alone, and a shard with no good photo."""
    rng = np.random.default_rng(0)
    labels = [[0], [0, 1], [1], [0, 1], [0], [0, 2]]
    rows = []
    for index, mine in enumerate(labels):
        counts = [3 + (index + label) % 3 for label in mine]
        rows.append(
            {
                "image_id": f"photo{index}",
                "labels": mine,
                "scores": rng.uniform(size=(len(mine), 9)),
                "candidate": np.concatenate([rng.permutation(9)[:count] for count in counts]),
                "candidate_label": np.repeat(mine, counts),
                "norm": rng.uniform(size=sum(counts)),
                "area": rng.uniform(size=sum(counts)),
                "features": rng.normal(size=(sum(counts), 4)),
                "fallback": np.zeros(len(mine)),
            }
        )

    def at(name: str, *overrides: str, size: int = 2) -> dict[str, dict]:
        run = RunDirectory.at(str(tmp_path / name))
        for begin in range(0, len(rows), size):
            run.write_shard("scores", f"train-{begin:05d}", rows[begin : begin + size])
        run.write_shard("scores", "train-00009", [{"image_id": "broken", "error": "not a photo"}])
        refine.run(Job(run, recipe.load("demo", list(overrides)), Listing(["a", "b", "c"], [1, 2, 3], [])))
        return {row["image_id"]: row for row in run.rows("refined")}

    return rows, at


def dense(rows: list[dict], index: int, label: int) -> np.ndarray:
    """Eq. (1), as it is written."""
    own = rows[index]["features"].astype(np.float16).astype(float)[rows[index]["candidate_label"] == label]
    others = [
        row["features"].astype(np.float16).astype(float)[row["candidate_label"] == label]
        for i, row in enumerate(rows)
        if i != index and label in row["labels"]
    ]
    return np.mean([[np.mean(np.sum((x - other) ** 2, axis=1)) for x in own] for other in others], axis=0)


@pytest.mark.parametrize("engine", ["moments", "faiss"])
def test_the_engine_computes_eq_1(scored, engine):
    rows, at = scored
    refined = at(engine, f"refinement.engine={engine}", "refinement.keep=nearest")
    for index, row in enumerate(rows):
        found = refined[row["image_id"]]
        for label in row["labels"]:
            own = row["candidate_label"] == label
            if label == 2:
                assert found["kept"][own].all() and not found["distance"][own].any()
                continue
            np.testing.assert_allclose(found["distance"][own], dense(rows, index, label), rtol=1e-4)
            kept = found["distance"][own][found["kept"][own]]
            assert len(kept) == np.ceil(own.sum() / 2)
            assert kept.max() <= np.sort(found["distance"][own])[len(kept) - 1]


def test_without_refinement_all_candidates_stay(scored):
    _, at = scored
    assert all(row["kept"].all() for row in at("off", "refinement.enabled=false").values())


def test_moments_do_not_depend_on_the_shards(scored):
    _, at = scored
    in_pairs, together = at("pairs", "refinement.engine=moments"), at("whole", "refinement.engine=moments", size=6)
    for image_id, row in in_pairs.items():
        assert (row["distance"] == together[image_id]["distance"]).all()


@pytest.mark.parametrize("metric", ["squared_l2", "nearest"])
def test_a_task_reads_every_shard_once(scored, tmp_path, monkeypatch, metric):
    rows, _ = scored
    run = RunDirectory.at(str(tmp_path / "reads"))
    for begin in range(0, 6, 2):
        run.write_shard("scores", f"train-{begin:05d}", rows[begin : begin + 2])
    read = []
    monkeypatch.setattr(
        RunDirectory, "read_good", lambda *args, real=RunDirectory.read_good: read.append(args[2]) or real(*args)
    )
    settings = recipe.load("demo", ["refinement.engine=faiss", f"refinement.metric={metric}"])
    job = Job(run, settings, Listing(["a", "b", "c"], [1, 2, 3], []))
    found = refine._pairwise_rows(job, "train-00002", None)
    assert sorted(read) == ["train-00000", "train-00002", "train-00004"]
    assert [row["photos"].tolist() for row in found] == [[3], [5, 3]]


def write_run(place: str, photos: dict[str, np.ndarray], *overrides: str) -> Job:
    """A run whose photos show class 0 and have these features, a photo per shard."""
    run = RunDirectory.at(place)
    for index, (image_id, features) in enumerate(photos.items()):
        count = len(features)
        run.write_shard(
            "scores",
            f"train-{index:05d}",
            [
                {
                    "image_id": image_id,
                    "labels": [0],
                    "scores": np.linspace(0.5, 1, count),
                    "candidate": np.arange(count),
                    "candidate_label": np.zeros(count, int),
                    "norm": np.ones(count),
                    "area": np.ones(count),
                    "features": features,
                    "fallback": [0],
                }
            ],
        )
    return Job(run, recipe.load("demo", list(overrides)), Listing(["a", "b"], [1, 2], []))


def refined(job: Job) -> dict[str, dict]:
    refine.run(job)
    return {row["image_id"]: row for row in job.run.rows("refined")}


THREE = {"one": np.eye(3)[:2], "bad": np.ones((2, 3)), "two": 2 * np.eye(3)}


@pytest.mark.parametrize("engine", ["moments", "faiss"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_photo_that_is_not_finite_fails_alone(cluster, tmp_path, engine, value):
    photos = {name: features.copy() for name, features in THREE.items()}
    photos["bad"][1, 2] = value
    setting = f"refinement.engine={engine}"
    found = refined(write_run(str(tmp_path / "all"), photos, setting))
    del photos["bad"]
    expected = refined(write_run(str(tmp_path / "without"), photos, setting))
    for name in ("one", "two"):
        assert np.isfinite(found[name]["distance"]).all() and found[name]["distance"].any() and not found[name]["error"]
        assert (found[name]["distance"] == expected[name]["distance"]).all()
        assert (found[name]["kept"] == expected[name]["kept"]).all()
    assert "features in the table 'scores' are not finite" in found["bad"]["error"] and not len(found["bad"]["kept"])


def test_scores_that_are_not_finite_are_an_error(cluster, tmp_path):
    job = write_run(str(tmp_path), THREE)
    (row,) = job.run.read_shard("scores", "train-00001")
    row["scores"] = np.array([0.5, np.nan])
    job.run.write_shard("scores", "train-00001", [row])
    found = refined(job)
    assert found["bad"]["error"].startswith("scores in the table")
    assert [found[name]["error"] for name in ("one", "two")] == ["", ""]


def test_what_a_task_is_sent_does_not_grow_with_the_features(cluster, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    job = write_run(str(tmp_path), {f"photo{i}": rng.normal(size=(2, 200)) for i in range(3)})
    sent = []

    def watch(job, stage, target, shards, *functions):
        sent.extend(len(pickle.dumps(known)) for known in shards.values())
        return map_shards(job, stage, target, shards, *functions)

    monkeypatch.setattr(refine, "map_shards", watch)
    assert len(refined(job)) == 3
    assert len(sent) == 3 and max(sent) < 100


def test_an_interrupted_run_uses_its_sums_again(cluster, tmp_path, monkeypatch):
    job = write_run(str(tmp_path), THREE)
    whole = refined(job)
    job.run.delete("refined", "train-00001.parquet")
    monkeypatch.setattr(refine, "_reduce", lambda *_: pytest.fail("the sums were there"))
    for image_id, row in refined(job).items():
        assert (row["distance"] == whole[image_id]["distance"]).all() and row["distance"].any()


def test_new_scores_have_new_sums(cluster, tmp_path):
    """The pipeline deletes the folder of a stage whose input changed; nothing in a process may outlive that."""
    job = write_run(str(tmp_path), THREE)
    before = refined(job)
    job.run.delete("refined")
    write_run(str(tmp_path), {**THREE, "two": 3 * np.eye(3)})
    after = refined(job)
    apart = {**THREE, "two": 3 * np.eye(3)}
    others = [apart["bad"], apart["two"]]
    expected = [np.mean([((x - other) ** 2).sum(axis=1).mean() for other in others]) for x in apart["one"]]
    np.testing.assert_allclose(after["one"]["distance"], expected, rtol=1e-4)
    assert (after["one"]["distance"] != before["one"]["distance"]).all()
