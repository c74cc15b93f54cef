"""Stage `score`: every proposal of every training photo through the network, on actors (one per GPU).

Tasks read, decode and say how regions add up from cells (`_prepared`); actors pool, score and project on the device, on
GPUs several photos at once; tasks write. PCA is fitted before, once, on a bounded sample. Features are projected inside
the actor, so 4,096 numbers per proposal never travel. Val photos pass too, each as the one hypothesis,
to measure the classifier: its average precision on photos that it has not seen.
"""

# ruff: noqa: RUF009 (a column is a dataclass field with its type)

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.backbones.precision import mixed_precision
from wsseg_ray.console import say
from wsseg_ray.engine import training
from wsseg_ray.engine.device import device_of
from wsseg_ray.engine.shards import guard
from wsseg_ray.engine.stage import Job, Runner, Stage, Step, Work
from wsseg_ray.evaluation.iou import mean_average_precision
from wsseg_ray.hcp.pooling import POOLINGS, parts
from wsseg_ray.hcp.pooling.sums import Shares, SumPooling, shares_of
from wsseg_ray.hcp.reduction import fit_pca, project
from wsseg_ray.hcp.scoring import choose_candidates, flatten_candidates, score_pooled, source_of
from wsseg_ray.stages.device import arrays_of
from wsseg_ray.stages.hcp import FOLDER, colours_of, loss_of, trained
from wsseg_ray.stages.rows import RegionsRow, add_photo, regions_of
from wsseg_ray.stages.stored import columns_in, hcp_reads, map_of
from wsseg_ray.tables import IMAGES, PROPOSALS, SCORES, Row, ScoreRow, array

PCA = "pca.npz"
TOGETHER = 16  # photos that pass a GPU together: 240 MB of pooled features of 1,000 proposals and 944 channels


def _run(job: Job, runner: Runner) -> int:
    """Write `scores/` and `scores/pca.npz`; returns the photos done now."""
    if not job.run.exists(SCORES.folder, PCA):
        runner.call(job, STAGE, _fit_pca)
    shards = [*job.shards(PROPOSALS), *job.shards(IMAGES, "val")]
    done = runner.map_shards(job, STAGE, _work(job), shards)
    if done:
        precision = _val_precision(job)
        if precision["val_map"] is not None:
            classes = ", ".join(f"{name} {ap:.1f}" for name, ap in precision["ap"].items() if ap is not None)
            say(f"{'':<16} val mAP {precision['val_map']:.1f}: {classes}")
    return done


def _work(job: Job) -> Work[ScoreRow]:
    return Work(SCORES, _rows, (Step(_prepared, PreparedRow), Step(Scorer, ScoreRow, actor=True)))


@dataclass
class PreparedRow(RegionsRow):
    """A photo, or its stored features; and, where regions are pooled by sums, their `Shares` in the cells of the map.

    The superpixels are empty then: the actor does not need them.
    """

    indices: np.ndarray = array("uint16", (-1,), "(nnz,) as in ProposalRow; there are at most 65,536 superpixels")
    cell_starts: np.ndarray = array("int32", (-1,), "(S + 1,) of A (S, cells) as CSR rows")
    cells: np.ndarray = array("int32", (-1,), "(nnz,) of A")
    cell_shares: np.ndarray = array("float32", (-1,), "(nnz,) of A")
    areas: np.ndarray = array("float32", (-1,), "(N,) pixels of each region")


def _prepared(job: Job, row: RegionsRow) -> PreparedRow:
    """All of the work on a photo that is no tensor product."""
    made = PreparedRow(**vars(row if row.levels else add_photo(job, row)))
    by_sums = row.split == "train" and isinstance(POOLINGS.get(job.recipe.hcp.pooling), SumPooling)
    if by_sums and (cells := _cells_of_map(job, row)):
        shares = shares_of(regions_of(row), *cells)
        made.cell_starts, made.cells, made.cell_shares = shares.cell_starts, shares.cells, shares.cell_shares
        made.areas, made.superpixels = shares.areas, np.empty(0, np.uint16)
    return made


def _cells_of_map(job: Job, row: RegionsRow) -> tuple[int, int] | None:
    """The height and width of a photo's feature map, in cells; None: not known before the backbone sees the photo.

    Raises ValueError where the photo is smaller than a cell.
    """
    if row.levels:
        height, width = map_of(row).shape[1:]
        return height, width
    backbone = BACKBONES.get(job.recipe.hcp.backbone)
    if backbone.region_cells is None:
        return None
    height, width = backbone.region_cells(row.height, row.width)
    if not height * width:
        raise ValueError(f"a photo of {row.height} x {row.width} pixels is smaller than a cell of {backbone.name}")
    return height, width


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
    """The trained network on this actor's device. It does nothing but tensor work."""

    def __init__(self, job: Job) -> None:
        self._job, self._loss = job, loss_of(job.recipe)
        self._device = device_of(job.recipe)
        self._network = trained(job).to(self._device)
        self._colours = colours_of(job.recipe.hcp.backbone)
        if job.run.exists(SCORES.folder, PCA):
            self._pca = [torch.from_numpy(own).to(self._device) for own in read_pca(job)[:2]]
        # On a CPU it would save nothing.
        self.many = self._many if self._device.type == "cuda" else None

    def __call__(self, row: PreparedRow) -> ScoreRow:
        return self._many([row])[0]

    def _many(self, rows: Sequence[PreparedRow]) -> list[ScoreRow]:
        """Rows of photos, TOGETHER at a time: a GPU is waited for four times for all of these."""
        found: dict[str, ScoreRow] = {}
        for split, work in (("val", self._wholes), ("train", self._proposals)):
            own = [row for row in rows if row.split == split]
            for start in range(0, len(own), TOGETHER):
                part = own[start : start + TOGETHER]
                found |= zip([row.image_id for row in part], work(part), strict=True)
        return [found[row.image_id] for row in rows]

    @torch.no_grad()
    def candidates(self, rows: Sequence[PreparedRow]) -> list[Candidates]:
        """What the network says of the proposals of photos, and which of them are candidates.

        They are chosen before scores are rounded for storage: 0.50002 in half precision is 0.5.
        """
        with mixed_precision(self._device):
            every, embedding = score_pooled(self._network, self._pooled(rows), self._loss)
        hcp, found, begin = self._job.recipe.hcp, [], 0
        (flat,) = arrays_of([every])
        for row in rows:
            own = flat[begin : begin + len(row.indptr) - 1].T[row.labels]
            chosen, fallback = choose_candidates(own, hcp.threshold, hcp.min_candidates)
            found.append(Candidates(own, chosen, fallback, embedding, begin))
            begin += len(row.indptr) - 1
        return found

    def _pooled(self, rows: Sequence[PreparedRow]) -> Iterable[torch.Tensor]:
        """Pooled features of the regions of photos, photo after photo, in parts."""
        pooling, sources = self._network.pooling, self._sources(rows)
        if isinstance(pooling, SumPooling) and all(len(row.cell_starts) for row in rows):
            return parts(pooling.pool(sources, [_shares(row) for row in rows]))
        pairs = zip(sources, rows, strict=True)
        return chain.from_iterable(pooling.chunks(self._network, source, regions_of(row)) for source, row in pairs)

    @torch.no_grad()
    def _proposals(self, rows: Sequence[PreparedRow]) -> list[ScoreRow]:
        """Rows of training photos."""
        seen, (mean, components) = self.candidates(rows), self._pca
        labelled = [flatten_candidates(own.chosen, row.labels) for own, row in zip(seen, rows, strict=True)]
        ends = np.cumsum([len(candidate) for candidate, _ in labelled])[:-1]
        chosen = np.concatenate([own.begin + candidate for own, (candidate, _) in zip(seen, labelled, strict=True)])
        features = seen[0].embedding[torch.from_numpy(chosen).to(self._device)]
        (norms,) = arrays_of([features.norm(dim=1)])
        (projected,) = arrays_of([project(features, mean, components).half()])
        each = zip(rows, seen, labelled, np.split(norms, ends), np.split(projected, ends), strict=True)
        return [
            ScoreRow(
                labels=row.labels,
                scores=own.scores.astype(np.float16),
                candidate=candidate,
                candidate_label=candidate_label,
                area=_areas(row)[candidate] / (row.height * row.width),
                norm=norm,
                features=reduced,
                fallback=own.fallback,
            )
            for row, own, (candidate, candidate_label), norm, reduced in each
        ]

    @torch.no_grad()
    def _wholes(self, rows: Sequence[PreparedRow]) -> list[ScoreRow]:
        """Rows of val photos, each photo as the one hypothesis."""
        network = self._network
        with mixed_precision(self._device):
            pooled = torch.cat([network.pooling.whole(network, source[None]) for source in self._sources(rows)])
            (logits,) = arrays_of([network.classify(network.embed(pooled))])
        return [ScoreRow(photo_logits=own) for own in logits]

    def _sources(self, rows: Sequence[PreparedRow]) -> list[torch.Tensor]:
        """What the pooling reads of each photo."""
        if all(row.levels for row in rows):
            return [map_of(row).to(self._device, non_blocking=True).float() for row in rows]
        photos = [normalise(torch.from_numpy(np.array(row.photo)).to(self._device), *self._colours)[0] for row in rows]
        if len(rows) == 1:  # a photo that is too large for the GPU goes through the backbone on the CPU
            return [source_of(self._network, photos[0])]
        return photos if self._network.pooling.needs_photo else self._network.backbone.maps_of(photos)


class Candidates(NamedTuple):
    """What the network says of a photo's proposals."""

    scores: np.ndarray  # (K, N) float32
    chosen: list[np.ndarray]  # of each class, its candidates, the best first
    fallback: np.ndarray  # (K,) bool: no proposal passed the threshold
    embedding: torch.Tensor  # (., D) on the device, of all photos that passed together
    begin: int  # the row of the embedding that is this photo's first proposal


def _shares(row: PreparedRow) -> Shares:
    pixels = row.height * row.width
    return Shares(row.cell_starts, row.cells, row.cell_shares, row.indptr, row.indices, row.areas, pixels)


def _areas(row: PreparedRow) -> np.ndarray:
    """Pixels of each region, (N,)."""
    return row.areas if len(row.areas) else regions_of(row).region_areas


def _fit_pca(job: Job) -> None:
    settings = job.recipe.refinement
    photos = training.index(job, PROPOSALS, hcp_reads(job.recipe))
    wanted = {photos.photo(i * len(photos) // settings.pca_photos) for i in range(settings.pca_photos)}
    scorer, sample, error = Scorer(job), [], ""
    rng = np.random.default_rng(job.recipe.seed)

    def look(row: RegionsRow) -> Row:
        (seen,) = scorer.candidates([_prepared(job, row)])
        candidates = np.unique(np.concatenate(seen.chosen))
        some = rng.permutation(candidates)[: settings.pca_candidates]
        sample.extend(arrays_of([seen.embedding[torch.from_numpy(some).to(seen.embedding.device)]]))
        return Row()

    for shard in sorted({shard for shard, _ in wanted}):
        for row in _rows(job, shard):
            if (shard, row.image_id) in wanted:
                error = guard(look, Row, row).error or error
    if not sample:
        raise RuntimeError(f"score: the PCA needs photos, and none could be used; the last error: {error}")
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
