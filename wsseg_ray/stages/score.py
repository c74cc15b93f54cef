"""Stage `score`: every proposal of every training photo through the network, on actors (one a GPU).

Tasks read and decode, actors score, tasks write. PCA is fitted before, once, on a bounded sample; features are
projected inside the actor, so that 4,096 numbers a proposal never travel.
"""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import ray
import torch

from wsseg_ray.hcp.reduction import fit_pca, project
from wsseg_ray.hcp.scoring import choose_candidates, flatten_candidates, score_proposals
from wsseg_ray.hcp.trunk import mixed_precision, normalise
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.stages import train_hcp, training
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.resources import needs
from wsseg_ray.stages.rows import add_photo, regions_of
from wsseg_ray.stages.shards import Row, guard, map_shards

TABLE = "scores"
PCA_PHOTOS = 64  # evenly spread over the training photos
PCA_CANDIDATES = 64  # of each: at most 4,096 features, eight for each of 512 dimensions


def run(job: Job) -> int:
    """Write `scores/` and `scores/pca.npz`; returns the photos done now."""
    shards = dict.fromkeys(job.run.shards("proposals"))
    wanted = needs(job.recipe, "score")
    if not job.run.exists(TABLE, "pca.npz"):
        ray.get(ray.remote(**wanted.options())(_fit_pca).remote(job, wanted.threads))
    return map_shards(job, "score", TABLE, dict.fromkeys(shards, wanted.threads), _rows, add_photo, actor=_Scorer)


def read_pca(job: Job) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Mean (D,), components (d, D), and what the report says of them."""
    with np.load(io.BytesIO(job.run.read_bytes(TABLE, "pca.npz"))) as kept:
        energy = {"dims": len(kept["components"]), "energy": float(kept["energy"])}
        return kept["mean"], kept["components"], energy


def _rows(job: Job, shard: str, threads: int) -> list[Row]:
    images = job.run.read_good("images", shard)
    rows = list(job.run.read_good("proposals", shard).values())
    for row in rows:
        image = images[row["image_id"]]
        row |= {"labels": image["labels"], "uri": image["uri"], "threads": threads}
    return rows


class _Scorer:
    """The trained network on this actor's device."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = train_hcp.trained(job).to(self._device)
        self._pca = read_pca(job)[:2] if job.run.exists(TABLE, "pca.npz") else None

    def __call__(self, row: Row) -> Row:
        regions = regions_of(row)
        scores, chosen, fallback, embedding = self.candidates(row, regions)
        candidate, candidate_label = flatten_candidates(chosen, row["labels"])
        features = embedding[candidate]
        return {
            "labels": row["labels"],
            "scores": scores,
            "candidate": candidate,
            "candidate_label": candidate_label,
            "area": regions.region_areas[candidate] / regions.superpixels.size,
            "norm": np.linalg.norm(features, axis=1),
            "features": project(features, *self._pca),
            "fallback": fallback,
        }

    def candidates(
        self, row: Row, regions: RegionProposals
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
        """Scores (K, N) as they are stored, candidates and fall-backs of each label, embeddings (N, D)."""
        torch.set_num_threads(row["threads"])
        photo = normalise(row["photo"])[0].to(self._device)
        hcp = self._job.recipe.hcp
        with mixed_precision(self._device):
            all_scores, embedding = score_proposals(self._network, photo, regions, hcp.loss)
        scores = all_scores.T[row["labels"]].astype(np.float16)
        return scores, *choose_candidates(scores, hcp.threshold, hcp.min_candidates), embedding


def _fit_pca(job: Job, threads: int) -> None:
    photos = [(shard, i) for shard, ids in training.members(job.run, "proposals", lambda row: True) for i in ids]
    wanted = {photos[i * len(photos) // PCA_PHOTOS] for i in range(PCA_PHOTOS)}
    scorer, sample = _Scorer(job), []
    rng = np.random.default_rng(job.recipe.seed)
    for shard in sorted({shard for shard, _ in wanted}):
        for row in (guard(partial(add_photo, job), row) for row in _rows(job, shard, threads)):
            if (shard, row["image_id"]) in wanted and not row.get("error"):
                _, chosen, _, embedding = scorer.candidates(row, regions_of(row))
                candidates = np.unique(np.concatenate(chosen))
                sample.append(embedding[rng.permutation(candidates)[:PCA_CANDIDATES]])
    settings = job.recipe.refinement
    mean, components, energy = fit_pca(np.concatenate(sample), settings.pca_energy, settings.pca_dims)
    buffer = io.BytesIO()
    np.savez(buffer, mean=mean, components=components, energy=energy)
    job.run.write_bytes(buffer.getvalue(), TABLE, "pca.npz")
