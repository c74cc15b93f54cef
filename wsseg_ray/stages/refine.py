"""Stage `refine`: Eq. (1) for every candidate, and which candidates are kept. CPU tasks.

Engine `moments`: one pass that reduces the photos to sums per class, which become the file `refined/sums.npz`, and one
pass whose tasks read that file.
Engine `faiss`: every shard reads all others once, one shard in memory at a time, and meets them class by class.

A photo whose features or scores are not finite takes no part and becomes a row with an error: one infinite feature
would make every distance of its class NaN.
"""

# ruff: noqa: RUF009 (a column is a dataclass field with its type)

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsseg_ray.datasets import Listing
from wsseg_ray.engine.stage import Finding, Job, Runner, Stage, Step, Work, photo_number
from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import Recipe
from wsseg_ray.refinement import KEEPS, METRICS
from wsseg_ray.refinement.distance import moments_distance, pairwise_sums, photo_moments, sum_moments
from wsseg_ray.stages.selection import kept_candidates
from wsseg_ray.tables import REFINED, SCORES, RefinedRow, ScoreRow, array

SUMS = "sums.npz"
COLUMNS = ("labels", "scores", "candidate", "candidate_label", "norm", "area", "features")
Sums = tuple[np.ndarray, np.ndarray, np.ndarray]  # photos, sum of mu and sum of m of each class


@dataclass
class DistanceRow(ScoreRow):
    """A row of `scores` with the distances of its candidates."""

    distance: np.ndarray = array("float64", ("candidate",), "(n,) Eq. (1)")
    photos: np.ndarray = array("int64", ("labels",), "(K,) photos that have candidates of the class")


def _run(job: Job, runner: Runner) -> int:
    """Write `refined/` for the scored photos; returns the photos done now."""
    shards = job.shards(SCORES, "train")
    if set(shards) <= set(job.run.shards(REFINED.folder)):
        return 0
    # Sums that are there are an interrupted run's: those of another input or setting lie in another folder.
    if not _by_pairs(job.recipe) and not job.run.exists(REFINED.folder, SUMS):
        _write_sums(job, _added(runner.map_reduce(job, "refine_moments", _shard_sums, shards)))
    return runner.map_shards(job, STAGE, _work(job), shards)


def _work(job: Job) -> Work[RefinedRow]:
    return Work(REFINED, _pairwise_rows if _by_pairs(job.recipe) else _moments_rows, (Step(_keep, RefinedRow),))


def _by_pairs(recipe: Recipe) -> bool:
    return recipe.refinement.engine == "faiss" or not METRICS.get(recipe.refinement.metric).factors


def _write_sums(job: Job, sums: Sums) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, *sums)
    job.run.write_bytes(buffer.getvalue(), REFINED.folder, SUMS)


def _read_sums(job: Job) -> Sums:
    with np.load(io.BytesIO(job.run.read_bytes(REFINED.folder, SUMS))) as kept:
        photos, means, squares = (kept[name] for name in kept.files)
    return photos, means, squares


def _added(parts: Iterable[dict[str, np.ndarray]]) -> Sums:
    """Sums of all shards. They are exact, so their order does not matter."""
    total: dict[str, Any] = {"photos": 0, "means": 0, "squares": 0}
    for part in parts:
        total = {name: total[name] + part[name] for name in total}
    return total["photos"], total["means"], total["squares"]


def _shard_sums(job: Job, shard: str) -> dict[str, np.ndarray]:
    _, features, photo, label = _candidates(job, shard)
    starts = groups(photo, label)
    photos, means, squares = sum_moments(label[starts], *photo_moments(features, starts), len(job.classes))
    return {"photos": photos, "means": means, "squares": squares}


def _moments_rows(job: Job, shard: str) -> list[DistanceRow]:
    rows, features, photo, label = _candidates(job, shard)
    sums = _read_sums(job)
    starts = groups(photo, label)
    own = photo_moments(features, starts)
    return _with_distances(rows, moments_distance(features, starts, label[starts], own, sums), sums[0])


def _pairwise_rows(job: Job, shard: str) -> list[DistanceRow]:
    own = _candidates(job, shard)
    rows, features, photo, label = own
    metric = METRICS.get(job.recipe.refinement.metric)
    total, others = np.zeros(len(label)), np.zeros(len(label), int)
    for name in job.shards(SCORES, "train"):
        _, block, owners, theirs = own if name == shard else _candidates(job, name)
        for k in np.intersect1d(label, theirs):
            queries, met = label == k, theirs == k
            sums, counts = pairwise_sums(features[queries], photo[queries], block[met], owners[met], metric)
            total[queries] += sums
            others[queries] += counts
    photos = np.zeros(len(job.classes), int)
    photos[label] = others + 1
    return _with_distances(rows, np.divide(total, others, out=np.zeros(len(label)), where=others > 0), photos)


def _candidates(job: Job, shard: str) -> tuple[list[ScoreRow], np.ndarray, np.ndarray, np.ndarray]:
    """The rows of a shard that `score` could do, and the candidates of those whose numbers are finite.

    Of the candidates the features (n, D), photos (n,) and labels (n,). The other rows have an `error`.
    """
    rows = [_checked(row) for row in job.run.read_good(job.table(SCORES), shard, COLUMNS).values()]
    good = [row for row in rows if not row.error]
    photo = np.repeat([photo_number(row.image_id) for row in good], [len(row.candidate) for row in good])
    if len(photo) == 0:
        return rows, np.zeros((0, 1), np.float32), np.zeros(0, int), np.zeros(0, int)
    features = np.concatenate([row.features for row in good])
    return rows, features.astype(np.float32), photo, np.concatenate([row.candidate_label for row in good])


def _checked(row: ScoreRow) -> ScoreRow:
    wrong = [name for name in ("features", "scores") if not np.isfinite(getattr(row, name)).all()]
    if not wrong:
        return row
    error = f"{' and '.join(wrong)} in the table 'scores' are not finite (infinite or NaN): nothing can be compared"
    return ScoreRow(row.image_id, error)


def groups(photo: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Where a photo's candidates of a class begin: the table has them class after class."""
    return np.flatnonzero((np.diff(photo, prepend=-1) != 0) | (np.diff(label, prepend=-1) != 0))


def _with_distances(rows: Sequence[ScoreRow], distance: np.ndarray, photos: np.ndarray) -> list[DistanceRow]:
    """The rows, each good one with its candidates' distances and the number of photos of each of its classes."""
    found, begin = [], 0
    for row in rows:
        if row.error:
            found.append(DistanceRow(row.image_id, row.error))
            continue
        end = begin + len(row.candidate)
        found.append(DistanceRow(**vars(row), distance=distance[begin:end], photos=photos[row.labels]))
        begin = end
    return found


def _keep(job: Job, row: DistanceRow) -> RefinedRow:
    settings = job.recipe.refinement
    kept = np.ones(len(row.candidate), bool)
    for photos, label in zip(row.photos, row.labels, strict=True):
        own = np.flatnonzero(row.candidate_label == label)
        if settings.enabled and photos > 1:  # a class with one photo has no distance: all its candidates are kept
            kept[own] = kept_candidates(job, row, KEEPS.get(settings.keep), label, row.distance[own])
    return RefinedRow(distance=row.distance, kept=kept)


def _check(recipe: Recipe, listing: Listing) -> list[Finding]:
    settings = recipe.refinement
    if settings.engine == "moments" and not METRICS.get(settings.metric).factors:
        text = f"refinement: engine 'moments' cannot compute the metric '{settings.metric}': use engine 'faiss'"
        return [Finding("refinement", False, text, RecipeError(text))]
    if importlib.util.find_spec("faiss") is None:
        text = 'not installed: pip install "wsseg_ray[cpu]", or [gpu] with CUDA'
        return [Finding("faiss", not _by_pairs(recipe), text)]
    import faiss

    return [Finding("faiss", True, f"{faiss.__version__}, {faiss.get_num_gpus()} GPUs")]


STAGE = Stage(
    name="refine",
    reads=("scores",),
    writes=REFINED.folder,
    run=_run,
    settings=lambda recipe: ["refinement"],
    table=REFINED,
    work=_work,
    pairs=_by_pairs,
    check=_check,
)
