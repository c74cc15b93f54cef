"""Both engines on the same scored photos."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.runs import by_name, empty_job
from wsseg_ray import recipe
from wsseg_ray.datasets import Listing
from wsseg_ray.engine.local import LocalRunner
from wsseg_ray.engine.stage import Job
from wsseg_ray.stages import refine
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import REFINED, SCORES, RefinedRow, ScoreRow

CLASSES = ("a", "b", "c")


def refined(job: Job) -> dict[str, RefinedRow]:
    refine.STAGE.do(job, LocalRunner())
    return by_name(job.run, REFINED)


@pytest.fixture
def rows() -> list[ScoreRow]:
    """Six photos, of classes 0 and 1, and class 2 on one photo alone."""
    rng = np.random.default_rng(0)
    found = []
    for index, labels in enumerate([[0], [0, 1], [1], [0, 1], [0], [0, 2]]):
        counts = [3 + (index + label) % 3 for label in labels]
        found.append(
            ScoreRow(
                f"photo{index}",
                labels=np.array(labels),
                scores=rng.uniform(size=(len(labels), 9)),
                candidate=np.concatenate([rng.permutation(9)[:count] for count in counts]),
                candidate_label=np.repeat(labels, counts),
                norm=rng.uniform(size=sum(counts)),
                area=rng.uniform(size=sum(counts)),
                features=rng.normal(size=(sum(counts), 4)),
                fallback=np.zeros(len(labels)),
            )
        )
    return found


def scored(place: Path, rows: Sequence[ScoreRow], *settings: str, size: int = 2) -> Job:
    """A run with these scores, `size` photos per shard, and a shard with no good photo."""
    job = empty_job(place, *settings, classes=CLASSES)
    for begin in range(0, len(rows), size):
        job.run.write_shard(SCORES, f"train-{begin:05d}", rows[begin : begin + size])
    job.run.write_shard(SCORES, "train-00009", [ScoreRow("broken", "not a photo")])
    job.run.write_shard(SCORES, "val-00000", [ScoreRow("val", photo_logits=np.ones(3))])
    return job


def dense(rows: list[ScoreRow], index: int, label: int) -> np.ndarray:
    """Eq. (1), as it is written."""
    own = rows[index].features.astype(np.float16).astype(float)[rows[index].candidate_label == label]
    others = [
        row.features.astype(np.float16).astype(float)[row.candidate_label == label]
        for i, row in enumerate(rows)
        if i != index and label in row.labels
    ]
    return np.mean([[np.mean(np.sum((x - other) ** 2, axis=1)) for x in own] for other in others], axis=0)


@pytest.mark.parametrize("engine", ["moments", "faiss"])
def test_the_engine_computes_eq_1(rows, tmp_path, engine):
    found = refined(scored(tmp_path, rows, f"refinement.engine={engine}", "refinement.keep=nearest"))
    assert found.keys() == {row.image_id for row in rows}, "what failed before goes no further, nor do val photos"
    for index, row in enumerate(rows):
        new = found[row.image_id]
        for label in row.labels:
            own = row.candidate_label == label
            if label == 2:
                assert new.kept[own].all() and not new.distance[own].any()
                continue
            np.testing.assert_allclose(new.distance[own], dense(rows, index, label), rtol=1e-4)
            kept = new.distance[own][new.kept[own]]
            assert len(kept) == np.ceil(own.sum() / 2)
            assert kept.max() <= np.sort(new.distance[own])[len(kept) - 1]


def test_without_refinement_all_candidates_stay(rows, tmp_path):
    found = refined(scored(tmp_path, rows, "refinement.enabled=false"))
    assert len(found) == 6 and all(row.kept.all() for row in found.values())


def test_moments_do_not_depend_on_the_shards(rows, tmp_path):
    moments = "refinement.engine=moments"
    in_pairs, together = (refined(scored(tmp_path / f"{size}", rows, moments, size=size)) for size in (2, 6))
    for image_id, row in in_pairs.items():
        assert (row.distance == together[image_id].distance).all()


@pytest.mark.parametrize("metric", ["squared_l2", "nearest"])
def test_a_task_reads_every_shard_once(rows, tmp_path, monkeypatch, metric):
    job = scored(tmp_path, rows, "refinement.engine=faiss", f"refinement.metric={metric}")
    read, real = [], RunDirectory.read_good

    def counted(self, table, shard, columns=None):
        read.append(shard)
        return real(self, table, shard, columns)

    monkeypatch.setattr(RunDirectory, "read_good", counted)
    found = refine.STAGE.work(job).read(job, "train-00002")
    assert sorted(read) == ["train-00000", "train-00002", "train-00004", "train-00009"]
    assert [row.photos.tolist() for row in found] == [[3], [5, 3]]


def photos_of_one_class(place: Path, photos: dict[str, np.ndarray], *settings: str) -> Job:
    """A run whose photos show class 0 and have these features, a photo per shard."""
    job = empty_job(place, *settings, classes=CLASSES)
    for index, (image_id, features) in enumerate(photos.items()):
        count = len(features)
        row = ScoreRow(image_id, labels=[0], scores=np.linspace(0.5, 1, count)[None], features=features, fallback=[0])
        row.candidate, row.candidate_label = np.arange(count), np.zeros(count, int)
        row.norm = row.area = np.ones(count)
        job.run.write_shard(SCORES, f"train-{index:05d}", [row])
    return job


THREE = {"one": np.eye(3)[:2], "bad": np.ones((2, 3)), "two": 2 * np.eye(3)}


@pytest.mark.parametrize("engine", ["moments", "faiss"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_photo_that_is_not_finite_fails_alone(tmp_path, engine, value):
    photos = {name: features.copy() for name, features in THREE.items()}
    photos["bad"][1, 2] = value
    setting = f"refinement.engine={engine}"
    found = refined(photos_of_one_class(tmp_path / "all", photos, setting))
    del photos["bad"]
    expected = refined(photos_of_one_class(tmp_path / "without", photos, setting))
    for name in ("one", "two"):
        assert np.isfinite(found[name].distance).all() and found[name].distance.any() and not found[name].error
        assert (found[name].distance == expected[name].distance).all()
        assert (found[name].kept == expected[name].kept).all()
    assert "features in the table 'scores' are not finite" in found["bad"].error and not len(found["bad"].kept)


def test_scores_that_are_not_finite_are_an_error(tmp_path):
    job = photos_of_one_class(tmp_path, THREE)
    (row,) = job.run.read_shard(SCORES, "train-00001")
    row.scores = np.array([[0.5, np.nan]])
    job.run.write_shard(SCORES, "train-00001", [row])
    found = refined(job)
    assert found["bad"].error.startswith("scores in the table")
    assert [found[name].error for name in ("one", "two")] == ["", ""]


class Watched(LocalRunner):
    """A runner that sees what it is given."""

    def __init__(self, see: Callable[..., None]) -> None:
        super().__init__()
        self._see = see

    def map_shards(self, job, stage, work, todo):
        self._see(job, work, todo)
        return super().map_shards(job, stage, work, todo)

    def map_reduce(self, job, name, kernel, todo):
        self._see(job, kernel, todo)
        return super().map_reduce(job, name, kernel, todo)


def test_what_a_task_is_sent_does_not_grow_with_the_features(tmp_path):
    """The sums of all photos lie in the run; a task is sent the name of a shard."""
    rng = np.random.default_rng(0)
    job, sent = photos_of_one_class(tmp_path, {f"photo{i}": rng.normal(size=(2, 200)) for i in range(3)}), []

    def see(job, what, todo):
        assert all(isinstance(shard, str) for shard in todo)
        sent.append(len(pickle.dumps((job, todo))))

    refine.STAGE.do(job, Watched(see))
    assert len(by_name(job.run, REFINED)) == 3 and len(sent) == 2 and max(sent) < 10_000


def test_an_interrupted_run_uses_its_sums_again(tmp_path):
    job = photos_of_one_class(tmp_path, THREE)
    whole = refined(job)
    job.run.delete("refined", "train-00001.parquet")
    calls = []
    assert refine.STAGE.do(job, Watched(lambda *_: calls.append(1))) == 1
    assert len(calls) == 1, "the sums were there"
    for image_id, row in by_name(job.run, REFINED).items():
        assert (row.distance == whole[image_id].distance).all() and row.distance.any()
    assert refine.STAGE.do(job, Watched(lambda *_: pytest.fail("all was done"))) == 0


def test_new_scores_have_new_sums(tmp_path):
    """The pipeline deletes the folder of a stage whose input changed; nothing in a process may outlive that."""
    job = photos_of_one_class(tmp_path, THREE)
    before = refined(job)
    job.run.delete("refined")
    apart = {**THREE, "two": 3 * np.eye(3)}
    after = refined(photos_of_one_class(tmp_path, apart))
    others = [apart["bad"], apart["two"]]
    expected = [np.mean([((x - other) ** 2).sum(axis=1).mean() for other in others]) for x in apart["one"]]
    np.testing.assert_allclose(after["one"].distance, expected, rtol=1e-4)
    assert (after["one"].distance != before["one"].distance).all()


def test_pairs_are_needed_where_the_metric_does_not_factor():
    for settings, pairs in (([], False), (["refinement.engine=faiss"], True), (["refinement.metric=nearest"], True)):
        assert refine.STAGE.pairs(recipe.load("demo", settings)) is pairs


def test_moments_of_a_metric_that_does_not_factor_are_refused():
    wrong = recipe.load("demo", ["refinement={engine: moments, metric: nearest}"])
    (finding,) = refine.STAGE.check(wrong, Listing([], [], []))
    assert not finding.good and isinstance(finding.problem, recipe.RecipeError)
    assert "cannot compute the metric 'nearest'" in finding.text and "use engine 'faiss'" in finding.text
