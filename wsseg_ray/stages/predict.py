"""Stage `predict`: val photos through every network on actors, then the dense CRF and the comparison in tasks.

Labels are brought back to the photo's full size, written as palette PNGs in VOC's submission layout, and compared with
the full-size mask where there is one.
"""

from __future__ import annotations

import io
import zipfile

import numpy as np
import torch
from PIL import Image

from wsseg_ray.datasets.pixels import encode_mask, photo_size, read_mask
from wsseg_ray.evaluation.iou import confusion
from wsseg_ray.hcp.trunk import normalise
from wsseg_ray.proposals.generate import generate
from wsseg_ray.recipe import Recipe
from wsseg_ray.segmentation.crf import dense_crf
from wsseg_ray.segmentation.deeplab import upsample
from wsseg_ray.segmentation.objectives.ilp import image_prior, smooth_by_regions
from wsseg_ray.stages import train_segmenter
from wsseg_ray.stages.job import Job, cpu_threads, mixed_precision
from wsseg_ray.stages.rows import add_photo
from wsseg_ray.stages.shards import Row, map_shards
from wsseg_ray.tables import read_bytes

TABLE = "predictions"
SUBMISSION = ("results", "VOC2012", "Segmentation", "comp6_val_cls")
ZIP = "results.zip"  # of SUBMISSION, as VOC's server takes it


def run(job: Job) -> int:
    """Write `predictions/` for the val photos, and a zip a network to hand in; returns the photos done now."""
    shards = [shard for shard in job.run.shards("images") if shard.startswith("val")]
    threads = cpu_threads(job.recipe)
    done = map_shards(job, "predict", TABLE, dict.fromkeys(shards, threads), _rows, actor=_Predictor, finish=_finish)
    for name in train_segmenter.networks(job.recipe):
        if done or not job.run.exists(TABLE, name, ZIP):
            job.run.write_bytes(_zipped(job, name), TABLE, name, ZIP)
    return done


def _zipped(job: Job, name: str) -> bytes:
    """A network's submission folder; the same bytes for the same labels."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in job.run.names(TABLE, name, *SUBMISSION):
            member = zipfile.ZipInfo("/".join([*SUBMISSION, file]))  # its date is a constant
            archive.writestr(member, job.run.read_bytes(TABLE, name, *SUBMISSION, file))
    return buffer.getvalue()


def _rows(job: Job, shard: str, threads: int) -> list[Row]:
    rows = list(job.run.read_good("images", shard).values())
    for row in rows:
        row["threads"] = threads
        add_photo(job, row, row["uri"])
    return rows


class _Predictor:
    """All trained networks on this actor's device."""

    def __init__(self, job: Job) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        names = train_segmenter.networks(job.recipe)
        self._networks = [train_segmenter.trained(job, name).to(self._device) for name in names]

    @torch.no_grad()
    def __call__(self, row: Row) -> Row:
        torch.set_num_threads(row["threads"])
        photo = normalise(row["photo"]).to(self._device)
        with mixed_precision(self._device):
            return {**row, "logits": [network(photo)[0].float().cpu() for network in self._networks]}


def _finish(job: Job, row: Row) -> Row:
    """Labels, with and without CRF, of every network, at full size; their files and confusion matrices."""
    names, crf = train_segmenter.networks(job.recipe), job.recipe.crf
    data = read_bytes(row["uri"])
    full = photo_size(data)
    truth = None
    if row["mask_uri"]:
        truth = read_mask(read_bytes(row["mask_uri"]), *full, job.listing.mask_values)
    encoded: dict[str, list[bytes]] = {"labels": [], "labels_crf": []}
    confusions = []
    for name, logits in zip(names, row["logits"], strict=True):
        found = [enlarge(labels, full) for labels in segment(job.recipe, name, row["photo"], logits)]
        for column, labels in zip(encoded, found, strict=False):
            encoded[column].append(encode_mask(labels))
        submitted = encoded["labels_crf" if crf.enabled else "labels"][-1]
        job.run.write_bytes(submitted, TABLE, name, *SUBMISSION, f"{row['image_id']}.png")
        if truth is not None:
            matrices = [confusion(labels, truth, len(job.classes) + 1) for labels in found]
            confusions.append(matrices if crf.enabled else [*matrices, np.zeros_like(matrices[0])])
    return {"networks": names, **encoded, "confusion": np.array(confusions, np.int64)}


def segment(recipe: Recipe, name: str, photo: np.ndarray, logits: torch.Tensor) -> list[np.ndarray]:
    """Labels (H, W) uint8 of a photo (H, W, 3) by a network's logits (C, h, w), and, where it is on, after the CRF."""
    probabilities = upsample(logits[None], *photo.shape[:2])[0].softmax(dim=0).numpy()
    if name == "ILP_SEG":  # MIL-ILP's priors, with regions of `generate` whatever the training photos' source
        regions, _ = generate(photo, recipe.proposals.count)
        probabilities = smooth_by_regions(image_prior(logits, torch.from_numpy(probabilities)).numpy(), regions)
    found = [probabilities.argmax(axis=0).astype(np.uint8)]
    if recipe.crf.enabled:
        found.append(dense_crf(photo, probabilities, **recipe.crf.model_dump(exclude={"enabled"})))
    return found


def enlarge(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels (H, W) at a size (height, width), by nearest neighbour."""
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
