"""The report of a run: a few photos out of its tables, and its numbers, as one page."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from wsseg_ray.datasets.pixels import read_photo
from wsseg_ray.recipe import dump
from wsseg_ray.report import Strip, render
from wsseg_ray.stages import evaluate, predict, supervise
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.rows import superpixels_of, truth_of
from wsseg_ray.tables import read_bytes, shown

PAGE = "report.html"
STRIPS = 7  # photos of each split; a prime, so that data sets that go round the classes show them all


def write(job: Job, metrics: dict[str, Any]) -> str:
    """Write `report.html` from what the run has so far; returns where it is."""
    stages = list(metrics["stages"])
    strips = _train_strips(job) if "supervise" in stages else []
    strips += _val_strips(job) if "predict" in stages else []
    page = render(
        f"{job.recipe.dataset.layout} · {', '.join(job.classes)}" if len(job.classes) <= 6 else "wsseg_ray",
        metrics,
        job.classes,
        strips,
        evaluate.failures(job, stages),
        dump(job.recipe),
        f"wsseg run recipe.yaml --run-dir {shown(job.run.root)}",
    )
    job.run.write_bytes(page.encode(), PAGE)
    return shown(job.run.uri(PAGE))


def _chosen(job: Job, table: str, prefix: str) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Photos to show, evenly spread, those with a mask first: shard, row of `images`, row of the table."""
    found = []
    for shard in job.run.shards(table):
        if shard.startswith(prefix):
            images = job.run.read_good("images", shard)
            rows = job.run.read_good(table, shard, [])
            found += [(shard, images[image_id]) for image_id in rows]
    found = [entry for entry in found if entry[1]["mask_uri"]] or found
    shown = [found[i * len(found) // STRIPS] for i in range(STRIPS)] if len(found) > STRIPS else found
    return [(shard, image, job.run.read_good(table, shard)[image["image_id"]]) for shard, image in shown]


def _train_strips(job: Job) -> list[Strip]:
    strips = []
    for shard, image, row in _chosen(job, supervise.TABLE, "train"):
        superpixels = superpixels_of(job.run.read_good("proposals", shard)[row["image_id"]])
        labels = [job.classes[label] for label in row["labels"]]
        maps = row["maps"].reshape(len(labels), -1).astype(np.float32)
        strips.append(
            Strip(
                row["image_id"],
                "train",
                read_photo(read_bytes(image["uri"]), job.recipe.dataset.max_side),
                labels,
                maps=[(name, p[superpixels]) for name, p in zip(labels, maps, strict=True)],
                rough=np.frombuffer(row["mask"], np.uint8)[superpixels],
                truth=_truth(job, image),
            )
        )
    return strips


def _val_strips(job: Job) -> list[Strip]:
    strips = []
    for _, image, row in _chosen(job, predict.TABLE, "val"):
        size = (image["width"], image["height"])
        column, suffix = ("labels_crf", " + CRF") if job.recipe.crf.enabled else ("labels", "")
        shown = [
            (name + suffix, np.asarray(Image.open(io.BytesIO(png)).resize(size, Image.Resampling.NEAREST)))
            for name, png in zip(row["networks"], row[column], strict=True)
            if name in job.recipe.segmentation.networks
        ]
        photo = read_photo(read_bytes(image["uri"]), job.recipe.dataset.max_side)
        labels = [job.classes[label] for label in image["labels"]]
        strips.append(Strip(row["image_id"], "val", photo, labels, predictions=shown, truth=_truth(job, image)))
    return strips


def _truth(job: Job, image: dict[str, Any]) -> np.ndarray | None:
    return truth_of(job, image) if image["mask_uri"] else None
