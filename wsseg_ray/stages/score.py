"""Stage `score`: every proposal of every training photo through the network, on actors (one per GPU).

Tasks read and decode, actors score, tasks write. PCA is fitted before, once, on a bounded sample; features are
projected inside the actor, so that 4,096 numbers per proposal never travel. Val photos pass too, each as the one
hypothesis, to measure the classifier: its average precision on photos that it has not seen.
"""

from __future__ import annotations

import io
import math
from functools import partial

import numpy as np
import ray
import torch

from wsseg_ray.console import say
from wsseg_ray.evaluation.iou import mean_average_precision
from wsseg_ray.hcp.reduction import fit_pca, project
from wsseg_ray.hcp.scoring import choose_candidates, flatten_candidates, pool_photo, score_proposals
from wsseg_ray.hcp.trunk import mixed_precision, normalise
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.stages import train_hcp, training
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.resources import needs
from wsseg_ray.stages.rows import add_photo, regions_of
from wsseg_ray.stages.shards import Row, guard, map_shards

TABLE = "scores"


def run(job: Job) -> int:
    """Write `scores/` and `scores/pca.npz`; returns the photos done now."""
    wanted = needs(job.recipe, "score")
    if not job.run.exists(TABLE, "pca.npz"):
        ray.get(ray.remote(**wanted.options())(_fit_pca).remote(job, wanted.threads))
    shards = dict.fromkeys([*job.run.shards("proposals"), *job.run.shards("images", "val")], wanted.threads)
    done = map_shards(job, "score", TABLE, shards, _rows, add_photo, actor=_Scorer)
    if done:
        found = {name: ap for name, ap in val_precision(job).items() if not math.isnan(ap)}
        if found:
            classes = ", ".join(f"{name} {ap:.1f}" for name, ap in found.items())
            say(f"{'':<16} val mAP {np.mean(list(found.values())):.1f}: {classes}")
    return done


def val_precision(job: Job) -> dict[str, float]:
    """Average precision of each class over the val photos, each scored as a whole; percentages, NaN where unknown."""
    logits, truth = [], []
    for shard in job.run.shards(TABLE, "val"):
        images = job.run.read_good("images", shard, ["labels"])
        for image_id, row in job.run.read_good(TABLE, shard, ["photo_logits"]).items():
            logits.append(row["photo_logits"])
            truth.append(np.isin(np.arange(len(job.classes)), images[image_id]["labels"]))
    found = mean_average_precision(np.array(logits), np.array(truth)) if logits else [math.nan] * len(job.classes)
    return dict(zip(job.classes, map(float, found), strict=True))


def read_pca(job: Job) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Mean (D,), components (d, D), and what the report says of them."""
    with np.load(io.BytesIO(job.run.read_bytes(TABLE, "pca.npz"))) as kept:
        energy = {"dims": len(kept["components"]), "energy": float(kept["energy"])}
        return kept["mean"], kept["components"], energy


def _rows(job: Job, shard: str, threads: int) -> list[Row]:
    images = job.run.read_good("images", shard)
    if shard.startswith("val"):
        return [{**image, "threads": threads} for image in images.values()]
    rows = list(job.run.read_good("proposals", shard).values())
    for row in rows:
        image = images[row["image_id"]]
        row |= {"labels": image["labels"], "uri": image["uri"], "split": image["split"], "threads": threads}
    return rows


class _Scorer:
    """The trained network on this actor's device."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = train_hcp.trained(job).to(self._device)
        self._pca = read_pca(job)[:2] if job.run.exists(TABLE, "pca.npz") else None

    def __call__(self, row: Row) -> Row:
        torch.set_num_threads(row["threads"])
        if row["split"] == "val":
            return {"photo_logits": self.photo_logits(row)}
        regions = regions_of(row)
        scores, chosen, fallback, embedding = self.candidates(row, regions)
        candidate, candidate_label = flatten_candidates(chosen, row["labels"])
        features = embedding[candidate]
        return {
            "labels": row["labels"],
            "scores": scores.astype(np.float16),
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
        """Scores (K, N) float32, candidates and fall-backs of each label, embeddings (N, D).

        Candidates are chosen before scores are rounded for storage: 0.50002 in half precision is 0.5.
        """
        photo = normalise(row["photo"])[0].to(self._device)
        hcp = self._job.recipe.hcp
        with mixed_precision(self._device):
            all_scores, embedding = score_proposals(self._network, photo, regions, hcp.loss)
        scores = all_scores.T[row["labels"]]
        return scores, *choose_candidates(scores, hcp.threshold, hcp.min_candidates), embedding

    @torch.no_grad()
    def photo_logits(self, row: Row) -> np.ndarray:
        """(C,) float32 of the photo as the one hypothesis."""
        photo = normalise(row["photo"])[0].to(self._device)
        with mixed_precision(self._device):
            return self._network.classify(self._network.embed(pool_photo(self._network, photo)))[0].cpu().numpy()


def _fit_pca(job: Job, threads: int) -> None:
    settings = job.recipe.refinement
    photos = [(shard, i) for shard, ids in training.chosen(training.index(job.run, "proposals")) for i in ids]
    wanted = {photos[i * len(photos) // settings.pca_photos] for i in range(settings.pca_photos)}
    scorer, sample = _Scorer(job), []
    torch.set_num_threads(threads)
    rng = np.random.default_rng(job.recipe.seed)
    for shard in sorted({shard for shard, _ in wanted}):
        for row in (guard(partial(add_photo, job), row) for row in _rows(job, shard, threads)):
            if (shard, row["image_id"]) in wanted and not row.get("error"):
                _, chosen, _, embedding = scorer.candidates(row, regions_of(row))
                candidates = np.unique(np.concatenate(chosen))
                sample.append(embedding[rng.permutation(candidates)[: settings.pca_candidates]])
    mean, components, energy = fit_pca(np.concatenate(sample), settings.pca_energy, settings.pca_dims)
    buffer = io.BytesIO()
    np.savez(buffer, mean=mean, components=components, energy=energy)
    job.run.write_bytes(buffer.getvalue(), TABLE, "pca.npz")
