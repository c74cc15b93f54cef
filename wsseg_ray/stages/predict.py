"""Stage `predict`: val photos through every network on actors, then the dense CRF and the comparison in tasks.

Labels are brought back to the photo's full size, written as palette PNGs in VOC's submission layout, and compared with
the full-size mask where there is one.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from wsseg_ray.datasets.pixels import encode_mask, photo_size, read_mask
from wsseg_ray.evaluation.iou import confusion
from wsseg_ray.hcp.trunk import normalise
from wsseg_ray.proposals.generate import generate
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


def run(job: Job) -> int:
    """Write `predictions/` for the val photos; returns the photos done now."""
    shards = [shard for shard in job.run.shards("images") if shard.startswith("val")]
    threads = cpu_threads(job.recipe)
    return map_shards(job, "predict", TABLE, dict.fromkeys(shards, threads), _rows, actor=_Predictor, finish=_finish)


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
    height, width = row["photo"].shape[:2]
    data = read_bytes(row["uri"])
    full = photo_size(data)
    truth = None
    if row["mask_uri"]:
        truth = read_mask(read_bytes(row["mask_uri"]), *full, job.listing.mask_values)
    encoded: dict[str, list[bytes]] = {"labels": [], "labels_crf": []}
    confusions = []
    for name, logits in zip(names, row["logits"], strict=True):
        probabilities = upsample(logits[None], height, width)[0].softmax(dim=0).numpy()
        if name == "ILP_SEG":
            probabilities = _with_priors(job, row["photo"], logits, probabilities)
        found = [probabilities.argmax(axis=0).astype(np.uint8)]
        if crf.enabled:
            found.append(dense_crf(row["photo"], probabilities, **crf.model_dump(exclude={"enabled"})))
        found = [np.asarray(Image.fromarray(labels).resize(full[::-1], Image.Resampling.NEAREST)) for labels in found]
        for column, labels in zip(encoded, found, strict=False):
            encoded[column].append(encode_mask(labels))
        submitted = encoded["labels_crf" if crf.enabled else "labels"][-1]
        job.run.write_bytes(submitted, TABLE, name, *SUBMISSION, f"{row['image_id']}.png")
        if truth is not None:
            matrices = [confusion(labels, truth, len(job.classes) + 1) for labels in found]
            confusions.append(matrices if crf.enabled else [*matrices, np.zeros_like(matrices[0])])
    return {"networks": names, **encoded, "confusion": np.array(confusions, np.int64)}


def _with_priors(job: Job, photo: np.ndarray, logits: torch.Tensor, probabilities: np.ndarray) -> np.ndarray:
    """MIL-ILP's image-level prior and its smoothing by regions, of `generate` whatever the training photos' source."""
    regions, _ = generate(photo, job.recipe.proposals.count)
    return smooth_by_regions(image_prior(logits, torch.from_numpy(probabilities)).numpy(), regions)
