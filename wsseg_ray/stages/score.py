"""Stage `score`: every proposal of every training photo through the network, on actors (one per GPU).

Tasks read and decode, actors score, tasks write. PCA is fitted before, once, on a bounded sample. Features are
projected inside the actor, so 4,096 numbers per proposal never travel. Val photos pass too, each as the one hypothesis,
to measure the classifier: its average precision on photos that it has not seen.
"""

from __future__ import annotations

import io
import math
from functools import partial
from typing import Any

import numpy as np
import torch

from wsseg_ray.backbones.photos import normalise
from wsseg_ray.backbones.precision import mixed_precision
from wsseg_ray.console import say
from wsseg_ray.engine import training
from wsseg_ray.engine.shards import guard
from wsseg_ray.engine.stage import Job, Runner, Stage, Step, Work
from wsseg_ray.evaluation.iou import mean_average_precision
from wsseg_ray.hcp.reduction import fit_pca, project
from wsseg_ray.hcp.scoring import (
    choose_candidates,
    flatten_candidates,
    pool_photo,
    pool_sources,
    score_proposals,
    score_source,
)
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.stages.hcp import FOLDER, colours_of, loss_of, trained
from wsseg_ray.stages.rows import RegionsRow, add_photo, regions_of
from wsseg_ray.stages.stored import columns_in, hcp_reads, map_of
from wsseg_ray.tables import IMAGES, PROPOSALS, SCORES, ScoreRow

PCA = "pca.npz"


def _run(job: Job, runner: Runner) -> int:
    """Write `scores/` and `scores/pca.npz`; returns the photos done now."""
    if not job.run.exists(SCORES.folder, PCA):
        runner.call(job, STAGE, _fit_pca)
    shards = dict.fromkeys([*job.shards(PROPOSALS), *job.shards(IMAGES, "val")])
    done = runner.map_shards(job, STAGE, _work(job), shards)
    if done:
        precision = _val_precision(job)
        if precision["val_map"] is not None:
            classes = ", ".join(f"{name} {ap:.1f}" for name, ap in precision["ap"].items() if ap is not None)
            say(f"{'':<16} val mAP {precision['val_map']:.1f}: {classes}")
    return done


def _work(job: Job) -> Work[ScoreRow]:
    return Work(SCORES, _rows, (Step(_with_source, RegionsRow), Step(Scorer, ScoreRow, actor=True)))


def _with_source(job: Job, row: RegionsRow) -> RegionsRow:
    """The row with what the network reads: its stored features, or else the photo."""
    return row if row.levels else add_photo(job, row)


def _rows(job: Job, shard: str) -> list[RegionsRow]:
    images = job.run.read_good(job.table(IMAGES), shard)
    about: dict[str, dict[str, Any]] = {
        image_id: {key: getattr(image, key) for key in ("uri", "digest", "split", "labels")}
        for image_id, image in images.items()
    }
    if features := hcp_reads(job.recipe):
        seen = job.run.read_good(job.table(features), shard)
        about = {i: {**known, **columns_in(seen[i])} for i, known in about.items() if i in seen}
    if shard.startswith("val"):
        return [RegionsRow(i, height=images[i].height, width=images[i].width, **known) for i, known in about.items()]
    proposals = job.run.read_good(job.table(PROPOSALS), shard)
    return [RegionsRow(**vars(row), **about[i]) for i, row in proposals.items() if i in about]


class Scorer:
    """The trained network on this actor's device."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = trained(job).to(self._device)
        self._colours = colours_of(job.recipe.hcp.backbone)
        self._pca = read_pca(job)[:2] if job.run.exists(SCORES.folder, PCA) else None

    def __call__(self, row: RegionsRow) -> ScoreRow:
        if row.split == "val":
            return ScoreRow(photo_logits=self._photo_logits(row))
        assert self._pca is not None
        regions = regions_of(row)
        scores, chosen, fallback, embedding = self.candidates(row, regions)
        candidate, candidate_label = flatten_candidates(chosen, row.labels)
        features = embedding[candidate]
        return ScoreRow(
            labels=row.labels,
            scores=scores.astype(np.float16),
            candidate=candidate,
            candidate_label=candidate_label,
            area=regions.region_areas[candidate] / regions.superpixels.size,
            norm=np.linalg.norm(features, axis=1),
            features=project(features, *self._pca),
            fallback=fallback,
        )

    def candidates(
        self, row: RegionsRow, regions: RegionProposals
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
        """Scores (K, N) float32, candidates and fall-backs of each class of the photo, embeddings (N, D).

        Candidates are chosen before scores are rounded for storage: 0.50002 in half precision is 0.5.
        """
        hcp, loss = self._job.recipe.hcp, loss_of(self._job.recipe)
        with mixed_precision(self._device):
            if row.levels:
                all_scores, embedding = score_source(self._network, map_of(row).to(self._device).float(), regions, loss)
            else:
                all_scores, embedding = score_proposals(self._network, self._normalised(row), regions, loss)
        scores = all_scores.T[row.labels]
        return scores, *choose_candidates(scores, hcp.threshold, hcp.min_candidates), embedding

    @torch.no_grad()
    def _photo_logits(self, row: RegionsRow) -> np.ndarray:
        """(C,) float32 of the photo as the one hypothesis."""
        network = self._network
        with mixed_precision(self._device):
            if row.levels:
                (pooled,) = pool_sources(network, [map_of(row).to(self._device).float()], None)
            else:
                pooled = pool_photo(network, self._normalised(row))
            return network.classify(network.embed(pooled))[0].cpu().numpy()

    def _normalised(self, row: RegionsRow) -> torch.Tensor:
        return normalise(row.photo, *self._colours)[0].to(self._device)


def _fit_pca(job: Job) -> None:
    settings = job.recipe.refinement
    index = training.index(job, PROPOSALS, hcp_reads(job.recipe))
    photos = [(shard, i) for shard, ids in training.chosen(index) for i in ids]
    wanted = {photos[i * len(photos) // settings.pca_photos] for i in range(settings.pca_photos)}
    scorer, sample = Scorer(job), []
    rng = np.random.default_rng(job.recipe.seed)
    for shard in sorted({shard for shard, _ in wanted}):
        for row in (guard(partial(_with_source, job), RegionsRow, row) for row in _rows(job, shard)):
            if (shard, row.image_id) in wanted and isinstance(row, RegionsRow) and row.is_good:
                _, chosen, _, embedding = scorer.candidates(row, regions_of(row))
                candidates = np.unique(np.concatenate(chosen))
                sample.append(embedding[rng.permutation(candidates)[: settings.pca_candidates]])
    mean, components, energy = fit_pca(np.concatenate(sample), settings.pca_energy, settings.pca_dims)
    buffer = io.BytesIO()
    np.savez(buffer, mean=mean, components=components, energy=energy)
    job.run.write_bytes(buffer.getvalue(), SCORES.folder, PCA)


def read_pca(job: Job) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Mean (D,), components (d, D), and what the report says of them."""
    with np.load(io.BytesIO(job.run.read_bytes(SCORES.folder, PCA))) as kept:
        energy = {"dims": len(kept["components"]), "energy": float(kept["energy"])}
        return kept["mean"], kept["components"], energy


def _val_precision(job: Job) -> dict[str, Any]:
    """Average precision of each class over the val photos, each scored as a whole, and their mean.

    They are percentages; None where no photo says anything of the class.
    """
    logits, truth = [], []
    for shard in job.run.shards(SCORES.folder, "val"):
        images = job.run.read_good(job.table(IMAGES), shard, ["labels"])
        for image_id, row in job.run.read_good(SCORES, shard, ["photo_logits"]).items():
            logits.append(row.photo_logits)
            truth.append(np.isin(np.arange(len(job.classes)), images[image_id].labels))
    found = mean_average_precision(np.array(logits), np.array(truth)) if logits else [math.nan] * len(job.classes)
    precision = {name: None if math.isnan(ap) else float(ap) for name, ap in zip(job.classes, found, strict=True)}
    known = [ap for ap in precision.values() if ap is not None]
    return {"ap": precision, "val_map": float(np.mean(known)) if known else None}


def _metrics(job: Job) -> dict[str, Any]:
    found = {name: dict.fromkeys(("photos", "candidates", "fallback"), 0) for name in job.classes}
    for row in job.run.rows(SCORES, ["error", "labels", "candidate_label", "fallback"]):
        for label, fallback in zip(row.labels, row.fallback, strict=True):
            entry = found[job.classes[label]]
            entry["photos"] += 1
            entry["candidates"] += int((row.candidate_label == label).sum())
            entry["fallback"] += int(fallback)
    return {"hcp": {**_val_precision(job), "pca": read_pca(job)[2]}, "candidates": found}


STAGE = Stage(
    name="score",
    reads=("images", "proposals", "features", FOLDER),
    writes=SCORES.folder,
    run=_run,
    settings=lambda recipe: [
        *([] if recipe.hcp.region_rounds else ["hcp.threshold", "hcp.min_candidates"]),
        "refinement.pca_energy",
        "refinement.pca_dims",
        "refinement.pca_photos",
        "refinement.pca_candidates",
    ],
    table=SCORES,
    work=_work,
    workers=lambda recipe: "actors",
    metrics=_metrics,
)
