"""Both engines on the same scored photos, with real Ray."""

import numpy as np
import pytest

from wsseg_ray import recipe
from wsseg_ray.datasets import Listing
from wsseg_ray.stages import refine
from wsseg_ray.stages.job import Job
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
