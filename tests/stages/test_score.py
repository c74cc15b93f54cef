"""Scores of regions and of whole photos, in what a run left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.runs import by_name, copy, equal
from wsseg_ray.engine.local import LocalRunner, as_sent
from wsseg_ray.engine.stage import open_run
from wsseg_ray.sources import digest
from wsseg_ray.stages import score
from wsseg_ray.stages.rows import add_photo
from wsseg_ray.tables import IMAGES, PROPOSALS, SCORES, ScoreRow, decode, encode


def rows_of(job, shard: str) -> list[score.PreparedRow]:
    """The rows of a shard as the actor gets them."""
    work = score.STAGE.work(job)
    rows = [work.steps[0].kernel(job, row) for row in work.read(job, shard)]
    return decode(score.PreparedRow, encode(score.PreparedRow, rows))


def test_val_photos_are_scored_as_the_whole_photo(tiny_local):
    job = open_run(tiny_local[1])
    scorer = score.Scorer(job)
    for shard in job.run.shards("scores", "val"):
        stored = job.run.read_good(SCORES, shard)
        for row in rows_of(job, shard):
            found = stored[row.image_id]
            assert row.split == "val" and len(found.scores) == len(found.candidate) == 0
            np.testing.assert_allclose(found.photo_logits, scorer(row).photo_logits, rtol=1e-5, atol=1e-6)
    metrics = job.run.read_json("metrics.json")["hcp"]
    known = [ap for ap in metrics["ap"].values() if ap is not None]
    assert set(metrics["ap"]) == set(job.classes) and metrics["val_map"] == pytest.approx(np.mean(known))


def test_what_a_training_photo_has(tiny_local):
    job = open_run(tiny_local[1])
    images, proposals = by_name(job.run, IMAGES), by_name(job.run, PROPOSALS)
    for shard in job.run.shards("scores", "train"):
        for image_id, row in job.run.read_good(SCORES, shard).items():
            assert (row.labels == images[image_id].labels).all()
            assert row.scores.shape == (len(row.labels), len(proposals[image_id].indptr) - 1)
            assert len(row.candidate) == len(row.candidate_label) == len(row.area) == len(row.norm) == len(row.features)
            assert set(row.candidate_label) == set(row.labels) and len(row.fallback) == len(row.labels)
            assert ((row.area > 0) & (row.area <= 1)).all() and len(row.photo_logits) == 0


def test_candidates_are_chosen_before_scores_are_rounded(tiny_local, monkeypatch):
    """0.50002 passes 0.5; in half precision, as it is stored, it is 0.5."""
    job = open_run(tiny_local[1])
    row = rows_of(job, job.run.shards("proposals")[0])[0]
    count = len(row.indptr) - 1
    scores = torch.full((count, len(job.classes)), 0.3)
    scores[0] = 0.50002
    embedding = torch.randn(count, 128, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(score, "score_pooled", lambda *_: (scores, embedding))
    found = score.Scorer(job)(row)
    assert found.candidate.tolist() == [0] * len(row.labels) and not found.fallback.any()
    assert found.scores.dtype == np.float16 and (found.scores[:, 0] == 0.5).all()


def test_photos_that_pass_together_get_the_rows_of_each_alone(tiny_local):
    """What an actor with a GPU does, with training and val photos in one batch."""
    job = open_run(tiny_local[1])
    shards = job.run.shards("proposals")[0], job.run.shards("scores", "val")[0]
    rows = [row for shard in shards for row in rows_of(job, shard)]
    scorer = score.Scorer(job)
    for row, found in zip(rows, scorer._many(rows), strict=True):
        alone = scorer(row)
        for name in ("scores", "area", "norm", "features", "photo_logits"):
            np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=1e-3, atol=1e-3)
        for name in ("labels", "candidate", "candidate_label", "fallback"):
            assert np.array_equal(getattr(found, name), getattr(alone, name))
        assert (row.split == "val") == (len(found.photo_logits) > 0) == (len(found.labels) == 0)


def test_the_actor_gets_shares_and_no_superpixels(tiny_local):
    """Of a photo whose features are not stored, too: the map's size is known before. Scores are the same bits."""
    job = open_run(tiny_local[1])
    shard = job.run.shards("proposals")[0]
    plain, row = score.STAGE.work(job).read(job, shard)[0], rows_of(job, shard)[0]
    assert not row.levels and row.photo.size and not row.superpixels.size and row.indices.dtype == np.uint16
    assert len(row.areas) == len(row.indptr) - 1 and len(row.cell_starts) == plain.superpixels.max() + 2
    unprepared = score.PreparedRow(**vars(add_photo(job, plain)))
    found, other = as_sent(ScoreRow, [score.Scorer(job)(own) for own in (row, unprepared)])
    assert equal(found, other)


def test_a_photo_smaller_than_a_cell_is_an_error(tiny_local):
    job = open_run(tiny_local[1])
    row = score.STAGE.work(job).read(job, job.run.shards("proposals")[0])[0]
    row.height, row.width = 3, 40
    with pytest.raises(ValueError, match="3 x 40 pixels is smaller than a cell of small"):
        score._cells_of_map(job, row)


def test_pca_is_fitted_once_on_a_sample(tiny_local, tmp_path):
    """A shard that is missing is scored with the PCA that is there."""
    run = copy(tiny_local[1], tmp_path)
    job, kept = open_run(run), run.read_bytes("scores", "pca.npz")
    shard = run.shards("scores", "train")[0]
    before = run.read_good(SCORES, shard)
    run.delete("scores", f"{shard}.parquet")
    assert score.STAGE.do(job, LocalRunner()) == len(before)
    assert run.read_bytes("scores", "pca.npz") == kept
    for image_id, row in run.read_good(SCORES, shard).items():
        assert np.array_equal(row.features, before[image_id].features)
    mean, components, about = score.read_pca(job)
    assert components.shape == (about["dims"], len(mean)) and 0.98 <= about["energy"] <= 1


def test_a_photo_that_was_changed_since_is_an_error(tiny_local):
    job = open_run(tiny_local[1])
    row = score.STAGE.work(job).read(job, job.run.shards("proposals")[0])[0]
    assert add_photo(job, row).photo.shape == (row.height, row.width, 3)
    row.digest = digest(b"another file of the same name")
    with pytest.raises(ValueError, match=f"{row.image_id}: the photo was changed since stage images"):
        add_photo(job, row)


def test_what_hinders_the_pca_is_told(tiny_local, tmp_path, monkeypatch):
    """Some photos that fail are left out of its sample, as they are failures of the stage; all of them stop it."""
    run = copy(tiny_local[1], tmp_path)
    run.delete("scores", "pca.npz")
    job, real, asked = open_run(run), score.Scorer.candidates, []

    def candidates(self, rows):
        asked.append(rows[0].image_id)
        if len(asked) == 1 or not usable:
            raise KeyError("surprise")
        return real(self, rows)

    monkeypatch.setattr(score.Scorer, "candidates", candidates)
    usable = True
    score._fit_pca(job)
    assert run.exists("scores", "pca.npz") and len(asked) == len(set(asked)) == 12
    usable = False
    with pytest.raises(RuntimeError, match=r"score: the PCA needs photos, and none could be used.*surprise"):
        score._fit_pca(job)
