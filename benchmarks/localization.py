"""How good are a run's candidates and maps, and what would other ways to keep candidates or activation maps have given?

    python benchmarks/localization.py RUN [--weights VGG16.pth] [--parts keep,count,cam] [--crf]

`RUN` is a run directory whose stages came at least to `refine`; its training photos that have true masks are measured,
superpixel by superpixel, and the masks are used for nothing else. Columns of every table, mIoU in percent:

    argmax      the maps beside Eq. (2)'s background
    /max        the same after each map was divided by its maximum in the photo
    threshold   the largest map where it reaches a threshold, which was chosen on every other photo and is reported on
                the rest, and the other way round
    rough       rough masks with the run's own settings, from maps divided by their maximum
    CRF         as `threshold`, after the dense CRF with the recipe's settings; with --crf

keep    Table 3's question: all candidates, or a share of them: nearest or farthest by Eq. (1), on the PCA features as
        they are, as unit vectors, and whitened (each component divided by its standard deviation); `contrast`, Eq. (1)
        minus its mean over the classes that the photo lacks; by FAISS's metrics; and controls that look at no other
        photo: the feature's norm, the score, the region's area, random.
count   other thresholds for candidates, and a fixed number of them.
cam     class activation maps of the same trunk, from `--weights`, frozen: a linear layer, or a head like HCP's, trained
        on whole photos with a softmax or sigmoids, applied at every cell of the feature map, negative parts cut off,
        divided by the maximum, and enlarged. `mean` is the mean over superpixels, which these maps otherwise lack.

Prints a table a part and a JSON line. Takes 2 to 10 minutes a part on two cores for 75 photos with masks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from wsseg_ray.backbones.photos import normalise
from wsseg_ray.datasets.pixels import read_photo
from wsseg_ray.engine.stage import Job, open_run, photo_number
from wsseg_ray.evaluation import iou
from wsseg_ray.hcp.loss import binary_cross_entropy_loss, cross_entropy_loss, label_targets
from wsseg_ray.hcp.scoring import choose_candidates
from wsseg_ray.proposals.boundaries.hypercolumn import load
from wsseg_ray.proposals.boundaries.vgg16 import VGG16
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.refinement import METRICS, selection
from wsseg_ray.refinement.distance import Metric, moments_distance, pairwise_sums, photo_moments, sum_moments
from wsseg_ray.refinement.selection import Keep, select
from wsseg_ray.segmentation.crf import dense_crf
from wsseg_ray.segmentation.inference import upsample
from wsseg_ray.stages.labels import crf_settings
from wsseg_ray.stages.refine import groups
from wsseg_ray.stages.rows import regions_of, truth_of
from wsseg_ray.storage import RunDirectory, read_bytes
from wsseg_ray.supervision.maps import localization_maps, normalize_max
from wsseg_ray.supervision.masks import rough_mask
from wsseg_ray.tables import IMAGES, PROPOSALS, SCORES

PARTS = ("keep", "count", "cam")
COLUMNS = ("argmax", "/max", "threshold", "rough", "CRF")
FRACTIONS = (0.25, 0.5, 0.75)
CRF_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
EPOCHS, RATE, HIDDEN = 60, 1e-3, 1024  # of the CAMs' heads, with Adam


class Photo(NamedTuple):
    """A training photo with a mask, and where its candidates lie among those of all photos."""

    image_id: str
    photo: np.ndarray
    regions: RegionProposals
    labels: list[int]
    scores: np.ndarray  # (K, N)
    counts: np.ndarray  # (S, C+1) pixels of the true classes
    truth: np.ndarray
    begin: int


class Candidates(NamedTuple):
    """The candidates of all training photos, label after label, photo after photo."""

    features: np.ndarray  # (n, D)
    photo: np.ndarray  # (n,)
    label: np.ndarray  # (n,)
    proposal: np.ndarray  # (n,)
    norm: np.ndarray  # (n,)
    area: np.ndarray  # (n,)
    score: np.ndarray  # (n,)


Maps = Callable[[Photo], np.ndarray]  # (K, S) of a photo


def read(job: Job) -> tuple[Candidates, list[Photo]]:
    """All candidates of the run, and its photos with masks."""
    columns: list[list[np.ndarray]] = [[] for _ in Candidates._fields]
    photos, begin = [], 0
    for shard in job.run.shards("scores", "train"):
        images, proposals = job.run.read_good(IMAGES, shard), job.run.read_good(PROPOSALS, shard)
        for image_id, row in job.run.read_good(SCORES, shard).items():
            n, labels = len(row.candidate), row.labels.tolist()
            scores = row.scores.astype(np.float64)
            score = scores[np.searchsorted(labels, row.candidate_label), row.candidate]
            features, numbers = row.features.astype(np.float32), np.full(n, photo_number(image_id))
            own = (features, numbers, row.candidate_label, row.candidate, row.norm, row.area, score)
            for column, values in zip(columns, own, strict=True):
                column.append(values)
            if images[image_id].mask_uri:
                regions = regions_of(proposals[image_id])
                truth = truth_of(job, images[image_id])
                counts = iou.superpixel_counts(regions.superpixels, truth, len(job.classes) + 1)
                photo = read_photo(read_bytes(images[image_id].uri), job.recipe.dataset.max_side)
                photos.append(Photo(image_id, photo, regions, labels, scores, counts, truth, begin))
            begin += n
    return Candidates(*map(np.concatenate, columns)), photos


def measure(job: Job, photos: list[Photo], maps_of: Maps, crf: bool) -> dict[str, float]:
    """The columns that this file's first lines explain."""
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    for photo in photos:
        maps, labels = maps_of(photo), photo.labels
        by_max = normalize_max(maps)
        columns["argmax"].append(_confusion(photo, iou.argmax_assignment(maps, labels)))
        columns["/max"].append(_confusion(photo, iou.argmax_assignment(by_max, labels)))
        columns["threshold"].append(
            [_confusion(photo, iou.threshold_assignment(by_max, labels, t)) for t in iou.THRESHOLDS]
        )
        columns["rough"].append(_confusion(photo, _rough(job, photo, by_max)))
        if crf:
            columns["CRF"].append(_after_crf(job, photo, by_max[:, photo.regions.superpixels]))
    return _columns(columns)


def _columns(columns: dict[str, list]) -> dict[str, float]:
    found = {name: iou.miou(np.sum(columns[name], axis=0)) for name in ("argmax", "/max", "rough") if columns[name]}
    return found | {name: held_out(np.array(columns[name])) for name in ("threshold", "CRF") if columns[name]}


def held_out(confusions: np.ndarray) -> float:
    """mIoU where every photo has the threshold that is best on the half of the photos to which it does not belong.

    Arguments:
        confusions: (photos, thresholds, classes, classes).
    """
    even, odd = confusions[::2].sum(axis=0), confusions[1::2].sum(axis=0)
    best_even, best_odd = (int(np.argmax([iou.miou(c) for c in half])) for half in (even, odd))
    return iou.miou(even[best_odd] + odd[best_even])


def _confusion(photo: Photo, assigned: np.ndarray) -> np.ndarray:
    return iou.superpixel_confusion(assigned, photo.counts)


def _rough(job: Job, photo: Photo, maps: np.ndarray) -> np.ndarray:
    own = job.recipe.supervision
    return rough_mask(
        photo.regions, maps, photo.scores, photo.labels, own.regions, own.min_area, own.ranking, own.threshold
    )


def _after_crf(job: Job, photo: Photo, maps: np.ndarray) -> list[np.ndarray]:
    """Confusions (thresholds) of the CRF on the maps (K, H, W) beside a background as strong as each threshold."""
    settings = crf_settings(job.recipe)
    names = np.array([0, *(label + 1 for label in photo.labels)], np.uint8)
    found = []
    for threshold in CRF_THRESHOLDS:
        claims = np.concatenate([np.full((1, *maps.shape[1:]), threshold), maps])
        labels = names[dense_crf(photo.photo, claims / claims.sum(axis=0), **settings)]
        found.append(iou.confusion(labels, photo.truth, len(job.classes) + 1))
    return found


def keep_part(job: Job, candidates: Candidates, photos: list[Photo]) -> Iterator[tuple[str, Maps]]:
    """Ways to keep candidates."""
    everything = np.ones(len(candidates.label))
    yield "all", _kept(job, candidates, selection.score, 1.0, everything)
    for keep in (selection.norm, selection.score, selection.area):
        for fraction in FRACTIONS:
            yield f"{keep.__name__} {fraction}", _kept(job, candidates, keep, fraction, everything)
    yield "random 0.5", _kept(job, candidates, selection.random, 0.5, everything)
    features = candidates.features
    kinds = {
        "raw": features,
        "unit": features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12),
        "whitened": features / np.maximum(features.std(axis=0), 1e-6),
    }
    for kind, own in kinds.items():
        distance, contrast = _distances(own, candidates, photos, len(job.classes))
        for name, values in (("nearest", distance), ("farthest", -distance), ("contrast", contrast)):
            for fraction in FRACTIONS:
                yield f"{kind}: {name} {fraction}", _kept(job, candidates, selection.nearest, fraction, values)
    for metric in METRICS.names[1:]:
        distance = _pairwise(candidates, photos, METRICS.get(metric))
        for name, values in (("nearest", distance), ("farthest", -distance)):
            yield f"metric {metric}: {name} 0.5", _kept(job, candidates, selection.nearest, 0.5, values)


def _kept(job: Job, candidates: Candidates, keep: Keep, fraction: float, distance: np.ndarray) -> Maps:
    def maps(photo: Photo) -> np.ndarray:
        chosen = []
        for k, label in enumerate(photo.labels):
            own = _group(candidates, photo, k)
            columns = (values[own] for values in (distance, candidates.norm, candidates.score, candidates.area))
            seed = [job.recipe.seed, photo_number(photo.image_id), label]
            kept = select(keep, fraction, selection.Candidates(*columns, seed))
            chosen.append(candidates.proposal[own][kept])
        return localization_maps(photo.regions, chosen)

    return maps


def _group(candidates: Candidates, photo: Photo, k: int) -> slice:
    """Where the candidates of a photo's k-th label lie."""
    number, label = photo_number(photo.image_id), photo.labels[k]
    end = photo.begin + int(np.searchsorted(candidates.photo[photo.begin :] != number, True))
    own = photo.begin + np.flatnonzero(candidates.label[photo.begin : end] == label)
    return slice(own[0], own[-1] + 1)


def _distances(
    features: np.ndarray, candidates: Candidates, photos: list[Photo], class_count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Eq. (1) of every candidate (n,), and Eq. (1) minus its mean over the classes that the photo lacks (n,).

    The second is of the measured photos alone, zero elsewhere. Towards a class that a photo lacks all its photos count.
    """
    starts = groups(candidates.photo, candidates.label)
    own = photo_moments(features, starts)
    sums = sum_moments(candidates.label[starts], *own, class_count)
    distance = moments_distance(features, starts, candidates.label[starts], own, sums)
    contrast = np.zeros(len(features))
    counts, means, squares = (of.astype(np.float64) for of in sums)
    seen = counts > 0
    centers, spread = means[seen] / counts[seen, None], squares[seen] / counts[seen]
    for photo in photos:
        lacks = ~np.isin(np.flatnonzero(seen), photo.labels)
        for k in range(len(photo.labels)):
            rows = _group(candidates, photo, k)
            x = features[rows].astype(np.float64)
            others = (x**2).sum(axis=1)[:, None] - 2 * x @ centers[lacks].T + spread[lacks]
            contrast[rows] = distance[rows] - (others.mean(axis=1) if lacks.any() else 0)
    return distance, contrast


def _pairwise(candidates: Candidates, photos: list[Photo], metric: Metric) -> np.ndarray:
    """Eq. (1) with another metric, of the measured photos alone, zero elsewhere."""
    distance = np.zeros(len(candidates.label))
    measured = np.isin(candidates.photo, [photo_number(photo.image_id) for photo in photos])
    for label in np.unique(candidates.label):
        met = candidates.label == label
        asked = np.flatnonzero(met & measured)
        total, others = pairwise_sums(
            candidates.features[asked], candidates.photo[asked], candidates.features[met], candidates.photo[met], metric
        )
        distance[asked] = total / np.maximum(others, 1)
    return distance


def count_part(job: Job, candidates: Candidates, photos: list[Photo]) -> Iterator[tuple[str, Maps]]:
    """All candidates, with other thresholds, or so many of the best."""
    least = job.recipe.hcp.min_candidates

    def above(threshold: float, best: int) -> Maps:
        return lambda photo: localization_maps(photo.regions, choose_candidates(photo.scores, threshold, best)[0])

    for threshold in (0.1, 0.3, 0.5, 0.7, 0.9):
        yield f"score above {threshold}", above(threshold, least)
    for best in (10, 50, 100, 200, 400):
        yield f"the best {best}", above(1.0, best)


def cam_part(job: Job, weights: Path) -> Iterator[tuple[str, Callable[[Photo], np.ndarray]]]:
    """Class activation maps, as functions from a photo to the maps (K, H, W) of its labels, in 0..1."""
    trunk = load(VGG16, weights)
    pooled, labels = [], []
    rows = [
        row
        for shard in job.run.shards("scores", "train")
        for row in (job.run.read_good(IMAGES, shard)[i] for i in job.run.read_good(SCORES, shard, []))
    ]
    for row in tqdm(rows, "features", disable=None):
        photo = read_photo(read_bytes(row.uri), job.recipe.dataset.max_side)
        with torch.inference_mode():
            pooled.append(trunk(normalise(photo))["out"][0].mean(dim=(1, 2)))
        labels.append(np.isin(np.arange(len(job.classes)), row.labels))
    x, targets = torch.stack(pooled).clone(), label_targets(torch.from_numpy(np.array(labels)))
    scale = x.std()
    for kind in ("linear", "head"):
        for name, loss in (("softmax", cross_entropy_loss), ("sigmoid", binary_cross_entropy_loss)):
            head = _trained_head(kind, x / scale, targets, loss)
            yield f"CAM {kind}, {name}", _activations(trunk, head, scale)


def _trained_head(kind: str, x: torch.Tensor, targets: torch.Tensor, loss: Callable) -> nn.Module:
    torch.manual_seed(0)
    dims, classes = x.shape[1], targets.shape[1]
    layers = [nn.Linear(dims, HIDDEN), nn.ReLU(), nn.Dropout(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout()]
    head = nn.Linear(dims, classes) if kind == "linear" else nn.Sequential(*layers, nn.Linear(HIDDEN, classes))
    optimizer = torch.optim.AdamW(head.parameters(), RATE)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(30):
            optimizer.zero_grad()
            loss(head(x[batch]), targets[batch]).backward()
            optimizer.step()
    return head.eval()


def _activations(trunk: nn.Module, head: nn.Module, scale: torch.Tensor) -> Callable[[Photo], np.ndarray]:
    @torch.inference_mode()
    def maps(photo: Photo) -> np.ndarray:
        cells = trunk(normalise(photo.photo))["out"][0] / scale
        found = head(cells.movedim(0, -1)).movedim(-1, 0)[photo.labels].relu()
        found = found / found.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)
        return upsample(found[None], *photo.photo.shape[:2])[0].double().numpy()

    return maps


def measure_pixels(
    job: Job, photos: list[Photo], maps_of: Callable[[Photo], np.ndarray], crf: bool
) -> dict[str, float]:
    """`measure` of maps (K, H, W), pixel by pixel."""
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    for photo in photos:
        maps = maps_of(photo)
        flat = maps.reshape(len(maps), -1)
        assigned = [iou.argmax_assignment(flat, photo.labels)]
        assigned += [iou.threshold_assignment(flat, photo.labels, t) for t in iou.THRESHOLDS]
        found = [iou.confusion(a.reshape(photo.truth.shape), photo.truth, len(job.classes) + 1) for a in assigned]
        columns["/max"].append(found[0])
        columns["threshold"].append(found[1:])
        if crf:
            columns["CRF"].append(_after_crf(job, photo, maps))
    return _columns(columns)


def superpixel_means(maps_of: Callable[[Photo], np.ndarray]) -> Maps:
    """Maps (K, H, W) as their means over superpixels (K, S)."""

    def maps(photo: Photo) -> np.ndarray:
        superpixels, areas = photo.regions.superpixels.ravel(), photo.regions.areas
        return np.array([np.bincount(superpixels, p.ravel()) / areas for p in maps_of(photo)])

    return maps


def table(part: str, measured: dict[str, dict[str, float]]) -> str:
    columns = [name for name in COLUMNS if any(name in of for of in measured.values())]
    lines = [f"| {part} | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, of in measured.items():
        cells = [f"{of[column]:.1f}" if column in of else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--parts", default="keep,count")
    parser.add_argument("--crf", action="store_true")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    if "cam" in parts and not options.weights:
        parser.error("cam needs --weights, an ImageNet VGG-16")
    place = RunDirectory.at(options.run).now()
    if not place.shards("scores"):
        sys.exit(f"{options.run} holds no scores: wsseg run RECIPE --run-dir {options.run} --until refine")
    job = open_run(options.run)
    candidates, photos = read(job)
    if not photos:
        sys.exit(f"{options.run}: no training photo has a true mask to measure with")
    print(
        f"{len(photos)} photos with masks of {len(np.unique(candidates.photo))}, {len(candidates.label)} candidates\n"
    )
    results: dict[str, dict[str, dict[str, float]]] = {}
    for part in parts:
        found = results[part] = {}
        if part == "cam":
            found["all candidates"] = measure(
                job, photos, _kept(job, candidates, selection.score, 1.0, candidates.norm), options.crf
            )
            for name, maps_of in cam_part(job, options.weights):
                found[name] = measure_pixels(job, photos, maps_of, options.crf)
                found[f"{name}, mean"] = measure(job, photos, superpixel_means(maps_of), False)
        else:
            rows = keep_part if part == "keep" else count_part
            for name, maps_of in tqdm(rows(job, candidates, photos), part, disable=None):
                found[name] = measure(job, photos, maps_of, options.crf and name == "all")
        print(table(part, found), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
