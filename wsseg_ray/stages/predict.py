"""Stage `predict`: val photos through every network on actors, then the dense CRF and the comparison in tasks.

Labels are brought back to the photo's full size, written as palette PNGs in VOC's submission layout, and compared with
the full-size mask where there is one.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from wsseg_ray.datasets.pixels import encode_mask, photo_size, read_mask
from wsseg_ray.engine.stage import Job, Runner, Stage, Step, Work
from wsseg_ray.evaluation import iou
from wsseg_ray.recipe import Recipe
from wsseg_ray.report import Strip
from wsseg_ray.segmentation.networks import NETWORKS
from wsseg_ray.sources import read_bytes
from wsseg_ray.stages.labels import enlarge, segment
from wsseg_ray.stages.pictures import chosen, files_of, some_shards
from wsseg_ray.stages.predictor import Predictor, ViewsRow, seen_rows, trained_networks, unpacked
from wsseg_ray.stages.rows import SeenRow, add_photo, file_of
from wsseg_ray.stages.segmenters import folder, networks, read_log
from wsseg_ray.stages.stored import STORED
from wsseg_ray.tables import IMAGES, PREDICTIONS, ImageRow, PredictionRow

SUBMISSION = ("results", "VOC2012", "Segmentation", "comp6_val_cls")
ZIP = "results.zip"  # of SUBMISSION, as VOC's server takes it
WORST, BEST = 24, 12  # photos of the report's gallery
SHOWN = 0.01  # share of a photo from which on a class is wholly there


def _run(job: Job, runner: Runner) -> int:
    """Write `predictions/` for the val photos, and a zip per network to submit; returns the photos done now."""
    done = runner.map_shards(job, STAGE, _work(job), job.shards(IMAGES, "val"))
    for network in networks(job.recipe) if job.recipe.runtime.zip_predictions else []:
        if done or not job.run.exists(PREDICTIONS.folder, network.name, ZIP):
            job.run.write_stream(partial(_zip, job, network.name), PREDICTIONS.folder, network.name, ZIP)
    return done


def _work(job: Job) -> Work[PredictionRow]:
    views = job.recipe.prediction.model_dump()
    steps = (
        Step(add_photo, SeenRow),
        Step(partial(Predictor, partial(trained_networks, networks(job.recipe), None), views), ViewsRow, actor=True),
        Step(_finish, PredictionRow),
    )
    return Work(PREDICTIONS, seen_rows, steps)


def _zip(job: Job, name: str, stream: Any) -> None:
    """Write a network's submission folder as a zip, a photo at a time; the same bytes for the same labels."""
    with zipfile.ZipFile(stream, "w") as archive:
        for file in job.run.names(PREDICTIONS.folder, name, *SUBMISSION):
            member = zipfile.ZipInfo("/".join([*SUBMISSION, file]))  # its date is a constant
            archive.writestr(member, job.run.read_bytes(PREDICTIONS.folder, name, *SUBMISSION, file))


def _finish(job: Job, row: ViewsRow) -> PredictionRow:
    """Labels, with and without CRF, of every network, at full size; their files and confusion matrices."""
    every, crf = networks(job.recipe), job.recipe.crf
    data = file_of(row)
    full = photo_size(data)
    true = read_mask(read_bytes(row.mask_uri), *full, job.listing.mask_values) if row.mask_uri else None
    found = PredictionRow(networks=[network.name for network in every])
    confusions = []
    for network, own in zip(every, segment(job.recipe, every, row.photo, unpacked(row)), strict=True):
        labels = [enlarge(one, full) for one in own]
        for column, one in zip((found.png, found.png_crf), labels, strict=False):
            column.append(encode_mask(one))
        submitted = (found.png_crf if crf.enabled else found.png)[-1]
        job.run.write_bytes(submitted, PREDICTIONS.folder, network.name, *SUBMISSION, f"{row.image_id}.png")
        if true is not None:
            matrices = [iou.confusion(one, true, len(job.classes) + 1) for one in labels]
            confusions.append(matrices if crf.enabled else [*matrices, np.zeros_like(matrices[0])])
    found.confusion = np.array(confusions, np.int64)
    return found


def _metrics(job: Job) -> dict[str, Any]:
    every, names = networks(job.recipe), ["background", *job.classes]
    total, photos = np.zeros((len(every), 2, len(names), len(names)), np.int64), 0
    for row in job.run.rows(PREDICTIONS, ["error", "confusion"]):
        if len(row.confusion):
            total += row.confusion.reshape(total.shape)
            photos += 1
    found = {}
    for network, (plain, crf) in zip(every, total, strict=True):
        val: dict[str, Any] = {"photos": photos}
        if photos:
            val |= {"miou": iou.miou(plain), "iou": iou.by_class(names, plain)}
        if photos and job.recipe.crf.enabled:
            val |= {"miou_crf": iou.miou(crf), "iou_crf": iou.by_class(names, crf)}
        about: dict[str, Any] = {"val": val, "log": read_log(job, network), "kind": network.kind}
        if network.unrefined_of:
            about["unrefined_of"] = network.unrefined_of
        found[network.name] = about
    return {"networks": found}


def _strips(job: Job) -> list[Strip]:
    shown = [NETWORKS.get(name).name for name in job.recipe.segmentation.networks]
    strips = [_strip(job, image, row, shown) for _, image, row in chosen(job, PREDICTIONS, "val")]
    return [strip for strip in (*strips, *_gallery(job)) if strip]


def _strip(job: Job, image: ImageRow, row: PredictionRow, shown: Collection[str]) -> Strip | None:
    """A photo with the labels of the networks that are shown, after the CRF if it is on; None: its file is gone."""
    files = files_of(job, image)
    if files is None:
        return None
    size = (image.width, image.height)
    column, suffix = (row.png_crf, " + CRF") if job.recipe.crf.enabled else (row.png, "")
    predictions = [
        (name + suffix, np.asarray(Image.open(io.BytesIO(png)).resize(size, Image.Resampling.NEAREST)))
        for name, png in zip(row.networks, column, strict=True)
        if name in shown
    ]
    labels = [job.classes[label] for label in image.labels]
    return Strip(row.image_id, "val", files[0], labels, predictions=predictions, truth=files[1])


def _gallery(job: Job) -> list[Strip]:
    """The val photos that the best network labels worst and best: by the photo's own mIoU, or without true masks by how
    far the network agrees with the names of what is in the photo."""
    every = networks(job.recipe)
    weak = [i for i, network in enumerate(every) if network.target != "truth"] or list(range(len(every)))
    found = _confusions(job, len(every))
    if found:
        total = np.sum(list(found.values()), axis=0)
        best = max(weak, key=lambda i: iou.miou(total[i]))
        scores = {place: iou.miou(confusion[best]) for place, confusion in found.items()}
    else:
        best = weak[0]
        scores = _agreements(job, best)
    ranked = sorted(scores, key=lambda place: (scores[place], place))
    shown = ranked if len(ranked) <= WORST + BEST else ranked[:WORST] + ranked[-BEST:]
    strips = []
    for shard, image_id in shown:
        image = job.run.read_good(job.table(IMAGES), shard)[image_id]
        row = job.run.read_good(PREDICTIONS, shard)[image_id]
        if strip := _strip(job, image, row, [every[best].name]):
            strips.append(replace(strip, score=scores[shard, image_id], measure="mIoU" if found else "agreement"))
    return strips


def _confusions(job: Job, many: int) -> dict[tuple[str, str], np.ndarray]:
    """By shard and photo, the confusion of each network, after the CRF if it is on; none without true masks."""
    side, found = len(job.classes) + 1, {}
    for shard in some_shards(job, PREDICTIONS, "val"):
        for image_id, row in job.run.read_good(PREDICTIONS, shard, ["confusion"]).items():
            if len(row.confusion):
                both = row.confusion.reshape(many, 2, side, side)
                found[shard, image_id] = both[:, int(job.recipe.crf.enabled)]
    return found


def _agreements(job: Job, network: int) -> dict[tuple[str, str], float]:
    """By shard and photo, how far a network agrees with the photo's names, in percent; see `agreement`."""
    column, found = "png_crf" if job.recipe.crf.enabled else "png", {}
    for shard in some_shards(job, PREDICTIONS, "val"):
        images = job.run.read_good(job.table(IMAGES), shard, ["labels"])
        for image_id, row in job.run.read_good(PREDICTIONS, shard, [column]).items():
            labels = np.asarray(Image.open(io.BytesIO(getattr(row, column)[network])))
            found[shard, image_id] = agreement(labels, images[image_id].labels)
    return found


def agreement(labels: np.ndarray, names: np.ndarray) -> float:
    """How far labels of pixels agree with the names of what is in a photo, in percent.

    Each class counts by the share of the photo's pixels that show it, at most SHOWN. For a class among the names this
    is right, for any other class an error. The agreement is the sum of what is right, divided by the sum of the errors
    and of the most that could be right, SHOWN for each name.

    Arguments:
        labels: (H, W) uint8, 0 background, i + 1 class i.
        names: (K,) the photo's classes, K >= 1.
    """
    shares = np.minimum(np.bincount(labels.ravel(), minlength=256) / labels.size, SHOWN)[1:]
    right = shares[names].sum()
    return float(100 * right / (SHOWN * len(names) + shares.sum() - right))


def _settings(recipe: Recipe) -> list[str]:
    own = ["prediction", "segmentation.networks", "segmentation.ablation", "segmentation.rounds"]
    return own if recipe.segmentation.rounds else [*own, "crf"]


STAGE = Stage(
    name="predict",
    reads=("images", folder(0), *STORED),
    writes=PREDICTIONS.folder,
    run=_run,
    settings=_settings,
    table=PREDICTIONS,
    work=_work,
    workers=lambda recipe: "actors",
    split="val",
    metrics=_metrics,
    strips=_strips,
)
