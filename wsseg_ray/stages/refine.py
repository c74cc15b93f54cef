"""Stage `refine`: Eq. (1) for every candidate, and which candidates are kept. CPU tasks.

Engine `moments`: one pass that reduces the photos to sums a class, broadcast once, and one pass that uses them.
Engine `faiss`: every shard meets all others, class by class, a shard in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import ray

from wsseg_ray.refinement.distance import moments_distance, pairwise_distance, photo_moments, sum_moments
from wsseg_ray.refinement.selection import select
from wsseg_ray.stages.job import Job, photo_number
from wsseg_ray.stages.shards import Row, map_shards

TABLE = "refined"
COLUMNS = ("labels", "scores", "candidate", "candidate_label", "norm", "features")


def run(job: Job) -> int:
    """Write `refined/` for the scored photos; returns the photos done now."""
    shards = dict.fromkeys(job.run.shards("scores"))
    settings = job.recipe.refinement
    if settings.engine == "faiss" or settings.metric != "squared_l2":
        return map_shards(job, "refine", TABLE, shards, _pairwise_rows, _keep)
    if set(shards) <= set(job.run.shards(TABLE)):
        return 0
    return map_shards(job, "refine", TABLE, dict.fromkeys(shards, _reduce(job, list(shards))), _moments_rows, _keep)


def _reduce(job: Job, shards: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photos, sum of mu and sum of m of every class. The sums are exact, so their order does not matter."""
    dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    dataset.set_name("refine_moments")
    parts = [row["sums"] for row in dataset.map(partial(_shard_sums, job)).iter_rows()]
    photos, means, squares = (sum(part[i] for part in parts) for i in range(3))
    return photos, means, squares


def _shard_sums(job: Job, item: Row) -> Row:
    classes, moments = [], []
    dims = 0
    for row in job.run.read_good("scores", item["shard"], COLUMNS).values():
        features = _features(row)
        dims = max(dims, features.shape[1])
        for label in row["labels"]:
            classes.append(label)
            moments.append(photo_moments(features[row["candidate_label"] == label]))
    means = np.array([mean for mean, _ in moments]).reshape(len(moments), dims)
    squares = np.array([square for _, square in moments])
    return {"sums": sum_moments(np.array(classes, int), means, squares, len(job.classes))}


def _moments_rows(job: Job, shard: str, sums: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[Row]:
    photos, means, squares = sums
    rows = list(job.run.read_good("scores", shard, COLUMNS).values())
    for row in rows:
        features = _features(row)
        row["photos"] = photos[row["labels"]]
        row["distance"] = np.zeros(len(features))
        for label in row["labels"]:
            own = row["candidate_label"] == label
            row["distance"][own] = moments_distance(
                features[own], photos[label], means[label], squares[label], photo_moments(features[own])
            )
    return rows


def _pairwise_rows(job: Job, shard: str, _: None) -> list[Row]:
    rows = list(job.run.read_good("scores", shard, COLUMNS).values())
    for row in rows:
        row["distance"] = np.zeros(len(row["candidate"]))
        row["photos"] = np.zeros(len(row["labels"]), int)
    for label in {label for row in rows for label in row["labels"].tolist()}:
        queries, owners = _of_class(rows, label)
        counted: set[int] = set()
        distance = pairwise_distance(queries, owners, _blocks(job, label, counted), job.recipe.refinement.metric)
        for row in rows:
            row["distance"][row["candidate_label"] == label] = distance[owners == photo_number(row["image_id"])]
            row["photos"][row["labels"] == label] = len(counted)
    return rows


def _blocks(job: Job, label: int, counted: set[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The candidates of a class, a shard at a time; the photos met are counted."""
    for shard in job.run.shards("scores"):
        rows = list(job.run.read_good("scores", shard, COLUMNS).values())
        features, owners = _of_class(rows, label)
        counted.update(owners.tolist())
        if len(owners):
            yield features, owners


def _of_class(rows: list[Row], label: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, D) of the rows' candidates of a class, and the photo of each (n,)."""
    own = [row["candidate_label"] == label for row in rows]
    features = [_features(row)[mine] for row, mine in zip(rows, own, strict=True)]
    owners = [np.full(mine.sum(), photo_number(row["image_id"])) for row, mine in zip(rows, own, strict=True)]
    kept = [i for i, owner in enumerate(owners) if len(owner)]
    if not kept:
        return np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
    return np.vstack([features[i] for i in kept]), np.concatenate([owners[i] for i in kept])


def _features(row: Row) -> np.ndarray:
    count = len(row["candidate"])
    return row["features"].reshape(count, -1).astype(np.float32)


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
    norm, score = row["norm"][own], scores[row["candidate"][own]]
    return select(keep, job.recipe.refinement.fraction, distance, norm, score, seed)
