"""Stage `refine`: Eq. (1) for every candidate, and which candidates are kept. CPU tasks.

Engine `moments`: one pass that reduces the photos to sums per class, which become the file `refined/sums.npz`, and one
pass whose tasks read that file.
Engine `faiss`: every shard reads all others once, a shard in memory at a time, and meets them class by class.

A photo whose features or scores are not finite takes no part and becomes a row with an error: one infinite feature
would make every distance of its class NaN.
"""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
import ray

from wsseg_ray.refinement.distance import moments_distance, pairwise_sums, photo_moments, sum_moments
from wsseg_ray.refinement.selection import select
from wsseg_ray.stages.job import Job, photo_number
from wsseg_ray.stages.shards import Row, map_shards

TABLE = "refined"
SUMS = "sums.npz"
COLUMNS = ("labels", "scores", "candidate", "candidate_label", "norm", "area", "features")


def run(job: Job) -> int:
    """Write `refined/` for the scored photos; returns the photos done now."""
    shards = dict.fromkeys(job.run.shards("scores", "train"))
    settings = job.recipe.refinement
    if settings.engine == "faiss" or settings.metric != "squared_l2":
        return map_shards(job, "refine", TABLE, shards, _pairwise_rows, _keep)
    if set(shards) <= set(job.run.shards(TABLE)):
        return 0
    # One that is there is an interrupted run's: what a changed input or setting made is deleted before a stage starts.
    if not job.run.exists(TABLE, SUMS):
        _write_sums(job, _reduce(job, list(shards)))
    return map_shards(job, "refine", TABLE, shards, _moments_rows, _keep)


def _write_sums(job: Job, sums: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, *sums)
    job.run.write_bytes(buffer.getvalue(), TABLE, SUMS)


def _read_sums(job: Job) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(io.BytesIO(job.run.read_bytes(TABLE, SUMS))) as kept:
        return tuple(kept[name] for name in kept.files)


def _reduce(job: Job, shards: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photos, sum of mu and sum of m of every class. The sums are exact, so their order does not matter."""
    dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    dataset.set_name("refine_moments")
    photos, means, squares = 0, 0, 0
    for row in dataset.map(partial(_shard_sums, job)).iter_rows():
        photos, means, squares = (
            total + part for total, part in zip((photos, means, squares), row["sums"], strict=True)
        )
    return photos, means, squares


def _shard_sums(job: Job, item: Row) -> Row:
    _, features, photo, label = _candidates(job, item["shard"])
    starts = groups(photo, label)
    return {"sums": sum_moments(label[starts], *photo_moments(features, starts), len(job.classes))}


def _moments_rows(job: Job, shard: str, _: None) -> list[Row]:
    rows, features, photo, label = _candidates(job, shard)
    sums = _read_sums(job)
    starts = groups(photo, label)
    own = photo_moments(features, starts)
    return _with_distances(rows, moments_distance(features, starts, label[starts], own, sums), sums[0])


def _pairwise_rows(job: Job, shard: str, _: None) -> list[Row]:
    own = _candidates(job, shard)
    rows, features, photo, label = own
    total, others = np.zeros(len(label)), np.zeros(len(label), int)
    for name in job.run.shards("scores", "train"):
        _, block, owners, theirs = own if name == shard else _candidates(job, name)
        for k in np.intersect1d(label, theirs):
            queries, met = label == k, theirs == k
            sums, counts = pairwise_sums(
                features[queries], photo[queries], block[met], owners[met], job.recipe.refinement.metric
            )
            total[queries] += sums
            others[queries] += counts
    photos = np.zeros(len(job.classes), int)
    photos[label] = others + 1
    return _with_distances(rows, np.divide(total, others, out=np.zeros(len(label)), where=others > 0), photos)


def _candidates(job: Job, shard: str) -> tuple[list[Row], np.ndarray, np.ndarray, np.ndarray]:
    """The rows of a shard that `score` could do, and the candidates of those whose numbers are finite.

    Of the candidates the features (n, D), photos (n,) and labels (n,). The other rows have an `error`.
    """
    rows = [_checked(row) for row in job.run.read_good("scores", shard, COLUMNS).values()]
    good = [row for row in rows if not row["error"]]
    photo = np.repeat([photo_number(row["image_id"]) for row in good], [len(row["candidate"]) for row in good])
    if len(photo) == 0:
        return rows, np.zeros((0, 1), np.float32), np.zeros(0, int), np.zeros(0, int)
    features = np.concatenate([row["features"] for row in good]).reshape(len(photo), -1)
    return rows, features.astype(np.float32), photo, np.concatenate([row["candidate_label"] for row in good])


def _checked(row: Row) -> Row:
    wrong = [name for name in ("features", "scores") if not np.isfinite(row[name]).all()]
    if not wrong:
        return row
    error = f"{' and '.join(wrong)} in the table 'scores' are not finite (infinite or NaN): nothing can be compared"
    return {"image_id": row["image_id"], "error": error}


def groups(photo: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Where a photo's candidates of a label begin: the table has them label after label."""
    return np.flatnonzero((np.diff(photo, prepend=-1) != 0) | (np.diff(label, prepend=-1) != 0))


def _with_distances(rows: list[Row], distance: np.ndarray, photos: np.ndarray) -> list[Row]:
    """The rows, each good one with its candidates' distances and the number of photos of each of its labels."""
    begin = 0
    for row in rows:
        if row["error"]:
            continue
        end = begin + len(row["candidate"])
        row["distance"], row["photos"] = distance[begin:end], photos[row["labels"]]
        begin = end
    return rows


def _keep(job: Job, row: Row) -> dict[str, Any]:
    settings = job.recipe.refinement
    kept = np.ones(len(row["candidate"]), bool)
    all_scores = row["scores"].reshape(len(row["labels"]), -1)
    for photos, label, scores in zip(row["photos"], row["labels"], all_scores, strict=True):
        own = np.flatnonzero(row["candidate_label"] == label)
        if settings.enabled and photos > 1:  # a class with one photo has no distance: all its candidates are kept
            kept[own] = choose(job, row, label, settings.keep, row["distance"][own], scores)
    return {"distance": row["distance"], "kept": kept}


def choose(job: Job, row: Row, label: int, keep: str, distance: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """`select` for one label of a row of `scores`; `random` draws from the recipe's seed, the photo and the label."""
    own = row["candidate_label"] == label
    seed = [job.recipe.seed, photo_number(row["image_id"]), int(label)]
    norm, score, area = row["norm"][own], scores[row["candidate"][own]], row["area"][own]
    return select(keep, job.recipe.refinement.fraction, distance, norm, score, area, seed)
