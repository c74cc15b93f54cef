"""Stage `predict`: val photos through every network on actors, then the dense CRF and the comparison in tasks.

Labels are brought back to the photo's full size, written as palette PNGs in VOC's submission layout, and compared with
the full-size mask where there is one.
"""

from __future__ import annotations

import io
import zipfile
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from wsseg_ray.datasets.pixels import encode_mask, photo_size, read_mask
from wsseg_ray.evaluation.iou import confusion
from wsseg_ray.hcp.trunk import mixed_precision, normalise
from wsseg_ray.segmentation.inference import photo_views
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.labels import enlarge, segment
from wsseg_ray.stages.resources import needs
from wsseg_ray.stages.rows import add_photo
from wsseg_ray.stages.segmenters import networks, trained
from wsseg_ray.stages.shards import Row, map_shards
from wsseg_ray.tables import read_bytes

TABLE = "predictions"
SUBMISSION = ("results", "VOC2012", "Segmentation", "comp6_val_cls")
ZIP = "results.zip"  # of SUBMISSION, as VOC's server takes it


def run(job: Job) -> int:
    """Write `predictions/` for the val photos, and a zip a network to hand in; returns the photos done now."""
    shards = job.run.shards("images", "val")
    known = dict.fromkeys(shards, needs(job.recipe, "predict").threads)
    actor = partial(Predictor, names=networks(job.recipe), **job.recipe.prediction.model_dump())
    done = map_shards(job, "predict", TABLE, known, photo_rows, add_photo, actor, _finish)
    for name in networks(job.recipe):
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


def photo_rows(job: Job, shard: str, threads: int) -> list[Row]:
    """The rows of `images` of a shard, for `add_photo` and `Predictor`."""
    return [{**row, "threads": threads} for row in job.run.read_good("images", shard).values()]


class Predictor:
    """Trained networks on this actor's device, after a round of training or the last; `views`: see `photo_views`."""

    def __init__(self, job: Job, names: list[str], round_: int | None = None, **views: Any) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._networks = [trained(job, name, round_).to(self._device) for name in names]
        if job.recipe.segmentation.freeze == "all":  # then every network has the trunk that it began with
            trunk = RememberingTrunk(self._networks[0].trunk)
            for network in self._networks:
                network.trunk = trunk
        self._views = views

    def __call__(self, row: Row) -> Row:
        """The row with the `views` of each network."""
        torch.set_num_threads(row["threads"])
        photo = normalise(row["photo"]).to(self._device)
        with mixed_precision(self._device):
            return {**row, "views": photo_views(self._networks, photo, **self._views)}


class RememberingTrunk(nn.Module):
    """A trunk that several networks share: asked about the same tensor again, it has the answer."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self._trunk = trunk
        self._last: tuple[torch.Tensor | None, Any] = (None, None)

    def forward(self, photos: torch.Tensor) -> Any:
        if photos is not self._last[0]:
            self._last = (photos, self._trunk(photos))
        return self._last[1]


def _finish(job: Job, row: Row) -> Row:
    """Labels, with and without CRF, of every network, at full size; their files and confusion matrices."""
    names, crf = networks(job.recipe), job.recipe.crf
    data = read_bytes(row["uri"])
    full = photo_size(data)
    truth = None
    if row["mask_uri"]:
        truth = read_mask(read_bytes(row["mask_uri"]), *full, job.listing.mask_values)
    encoded: dict[str, list[bytes]] = {"labels": [], "labels_crf": []}
    confusions = []
    for name, own in zip(names, segment(job.recipe, names, row["photo"], row["views"]), strict=True):
        found = [enlarge(labels, full) for labels in own]
        for column, labels in zip(encoded, found, strict=False):
            encoded[column].append(encode_mask(labels))
        submitted = encoded["labels_crf" if crf.enabled else "labels"][-1]
        job.run.write_bytes(submitted, TABLE, name, *SUBMISSION, f"{row['image_id']}.png")
        if truth is not None:
            matrices = [confusion(labels, truth, len(job.classes) + 1) for labels in found]
            confusions.append(matrices if crf.enabled else [*matrices, np.zeros_like(matrices[0])])
    return {"networks": names, **encoded, "confusion": np.array(confusions, np.int64)}
