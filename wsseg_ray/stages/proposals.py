"""Stage `proposals`: the candidate regions of every training photo, and the ten that train HCP. CPU tasks.

Where a trunk draws the contours, tasks read and decode, actors (one a GPU) find the boundaries, tasks do the rest.
"""

from __future__ import annotations

import numpy as np
import torch

from wsseg_ray.datasets.pixels import read_photo
from wsseg_ray.hcp.hypotheses import select_hypotheses
from wsseg_ray.proposals import ProposalFileError, contours, generate, masks, mcg
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.recipe import Recipe
from wsseg_ray.stages.checkpoints import weights_source
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.rows import add_photo
from wsseg_ray.stages.shards import Row, map_shards
from wsseg_ray.tables import read_bytes

TABLE = "proposals"
READERS = {"mcg": (mcg.read, ".mat"), "masks": (masks.read, ".json")}


def run(job: Job) -> int:
    """Write `proposals/` for the training photos; returns the photos done now."""
    shards = dict.fromkeys(job.run.shards("images", "train"))
    if job.recipe.proposals.has_trunk:
        return map_shards(job, "proposals", TABLE, shards, _rows, add_photo, _Boundary, _propose)
    return map_shards(job, "proposals", TABLE, shards, _rows, _propose)


def check_weights(recipe: Recipe) -> None:
    """Raise WeightsError where the weights cannot be used."""
    if recipe.proposals.has_trunk:
        _trunk(recipe)


def _trunk(recipe: Recipe) -> torch.nn.Sequential:
    weights = recipe.proposals.weights
    return contours.contour_trunk(weights_source(weights), weights)


def _rows(job: Job, shard: str, _: None) -> list[Row]:
    return list(job.run.read_good("images", shard).values())


class _Boundary:
    """The trunk on this actor's device."""

    def __init__(self, job: Job) -> None:
        # Always one: convolutions on more threads differ in the last bits, and a watershed follows every bit.
        torch.set_num_threads(1)
        self._trunk = _trunk(job.recipe).to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, row: Row) -> Row:
        return {**row, "boundary": contours.trunk_boundary(self._trunk, generate.shrink(row["photo"]))}


def _propose(job: Job, row: Row) -> Row:
    settings, hcp = job.recipe.proposals, job.recipe.hcp
    if settings.source == "generate":
        if job.recipe.proposals.has_trunk:
            photo, boundary = row["photo"], row["boundary"]
        else:
            photo, boundary = read_photo(read_bytes(row["uri"]), job.recipe.dataset.max_side), None
        regions, objectness = generate.generate(photo, settings.count, boundary)
    else:
        regions, objectness = _from_file(job, row)
    return {
        "height": row["height"],
        "width": row["width"],
        "superpixels": regions.superpixels.astype("<u2").tobytes(),
        "indptr": regions.membership.indptr,
        "indices": regions.membership.indices,
        "objectness": objectness,
        "hypotheses": select_hypotheses(
            regions.boxes,
            objectness,
            hcp.hypotheses,
            hcp.min_area,
            hcp.max_aspect,
            job.recipe.seed,
            clustered=hcp.clustered_boxes,
        ),
    }


def _from_file(job: Job, row: Row) -> tuple[RegionProposals, np.ndarray]:
    read, suffix = READERS[job.recipe.proposals.source]
    place = f"{job.recipe.proposals.root.rstrip('/')}/{row['image_id']}{suffix}"
    try:
        data = read_bytes(place)
    except OSError as error:
        raise ProposalFileError(f"no proposals: {place} cannot be read ({error})") from error
    regions, objectness = read(data, job.recipe.proposals.count)
    full, size = regions.superpixels.shape, (row["height"], row["width"])
    shrink = max(size) / max(full)
    if shrink > 1 or max(abs(full[0] * shrink - size[0]), abs(full[1] * shrink - size[1])) > 1:
        raise ProposalFileError(f"proposals of {full[1]}x{full[0]} px for a photo of {size[1]}x{size[0]} px")
    if full != size:
        regions, kept = regions.resized(*size)
        objectness = objectness[kept]
        if len(kept) == 0:
            raise ProposalFileError(f"no proposal is left at {size[1]}x{size[0]} px")
    return regions, objectness
