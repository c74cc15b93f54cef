"""Stage `proposals`: the candidate regions of every training photo, and the ten that train HCP. CPU tasks.

Where a backbone finds the boundaries, tasks read and decode, actors (one per GPU) find the boundaries, tasks do the
rest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from wsseg_ray.backbones.vgg import VGG
from wsseg_ray.datasets import Listing
from wsseg_ray.engine.checkpoints import weights_finding, weights_source
from wsseg_ray.engine.stage import Finding, Job, Stage, Step, Work
from wsseg_ray.errors import RecipeError
from wsseg_ray.hcp.hypotheses import select_hypotheses
from wsseg_ray.proposals import SOURCES, ProposalFileError, Source, contours, generate
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.recipe import Recipe
from wsseg_ray.stages.rows import BoundaryRow, PhotoRow, add_photo, photo_rows
from wsseg_ray.storage import read_bytes, shown
from wsseg_ray.tables import PROPOSALS, ProposalRow


def _work(job: Job) -> Work[ProposalRow]:
    steps: tuple[Step, ...] = (Step(_propose, ProposalRow),)
    if _has_backbone(job.recipe):
        # Always one thread: convolutions on more differ in the last bits, and a watershed follows every bit.
        steps = (Step(add_photo, PhotoRow), Step(_Boundary, BoundaryRow, actor=True, threads=1), *steps)
    return Work(PROPOSALS, photo_rows, steps)


def _has_backbone(recipe: Recipe) -> bool:
    return _source(recipe).takes_boundary and recipe.proposals.weights is not None


def _source(recipe: Recipe) -> Source:
    return SOURCES.get(recipe.proposals.source)


def _trunk(recipe: Recipe) -> VGG:
    weights = recipe.proposals.weights or ""
    return contours.contour_trunk(weights_source(weights), weights)


class _Boundary:
    """The backbone that finds boundaries, on this actor's device."""

    def __init__(self, job: Job) -> None:
        self._trunk = _trunk(job.recipe).to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, row: PhotoRow) -> BoundaryRow:
        boundary = contours.trunk_boundary(self._trunk, generate.shrink(row.photo))
        return BoundaryRow(**vars(row), rows=boundary.shape[0], columns=boundary.shape[1], boundary=boundary)


def _propose(job: Job, row: PhotoRow) -> ProposalRow:
    hcp = job.recipe.hcp
    regions, objectness = _regions(job, row)
    return ProposalRow(
        height=row.height,
        width=row.width,
        superpixels=regions.superpixels,
        indptr=regions.membership.indptr,
        indices=regions.membership.indices,
        objectness=objectness,
        hypotheses=select_hypotheses(
            regions.boxes,
            objectness,
            hcp.hypotheses,
            hcp.min_area,
            hcp.max_aspect,
            job.recipe.seed,
            clustered=hcp.clustered_boxes,
        ),
    )


def _regions(job: Job, row: PhotoRow) -> tuple[RegionProposals, np.ndarray]:
    source, count = _source(job.recipe), job.recipe.proposals.count
    if source.from_file is not None:
        return _from_file(job, source, row)
    assert source.from_photo is not None
    if not source.takes_boundary:
        return source.from_photo(add_photo(job, row).photo, count)
    if isinstance(row, BoundaryRow):
        return source.from_photo(row.photo, count, row.boundary)
    return source.from_photo(add_photo(job, row).photo, count, None)


def _from_file(job: Job, source: Source, row: PhotoRow) -> tuple[RegionProposals, np.ndarray]:
    assert source.from_file is not None
    place = f"{(job.recipe.proposals.root or '').rstrip('/')}/{row.image_id}{source.suffix}"
    try:
        data = read_bytes(place)
    except OSError as error:
        raise ProposalFileError(f"no proposals: {place} cannot be read ({error})") from error
    regions, objectness = source.from_file(data, job.recipe.proposals.count)
    full, size = regions.superpixels.shape, (row.height, row.width)
    shrink = max(size) / max(full)
    if shrink > 1 or max(abs(full[0] * shrink - size[0]), abs(full[1] * shrink - size[1])) > 1:
        raise ProposalFileError(f"proposals of {full[1]}x{full[0]} px for a photo of {size[1]}x{size[0]} px")
    if full != size:
        regions, kept = regions.resized(*size)
        objectness = objectness[kept]
        if len(kept) == 0:
            raise ProposalFileError(f"no proposal is left at {size[1]}x{size[0]} px")
    return regions, objectness


def _check(recipe: Recipe, listing: Listing) -> list[Finding]:
    settings, source = recipe.proposals, _source(recipe)
    found = []
    if source.from_file is not None and settings.root is None:
        text = f"proposals.root: source '{settings.source}' needs the folder that holds its files"
        return [Finding("proposals", False, text, RecipeError(text))]
    if _has_backbone(recipe):
        found.append(weights_finding("proposals", settings.weights, lambda: (_trunk(recipe), [])))
    if source.from_file is not None and settings.root is not None and "://" not in settings.root:
        names = {path.name for path in Path(settings.root).iterdir()} if Path(settings.root).is_dir() else set()
        train = [photo for photo in listing.photos if photo.split == "train" and not photo.error]
        there = sum(f"{photo.image_id}{source.suffix}" in names for photo in train)
        text = f"{there} of {len(train)} training photos have a file in {shown(settings.root)}"
        found.append(Finding("proposals", there == len(train), text))
    return found


STAGE = Stage(
    name="proposals",
    reads=("images",),
    writes=PROPOSALS.folder,
    settings=lambda recipe: [
        "seed",
        "proposals",
        "hcp.hypotheses",
        "hcp.clustered_boxes",
        "hcp.min_area",
        "hcp.max_aspect",
    ],
    table=PROPOSALS,
    work=_work,
    workers=lambda recipe: "actors" if _has_backbone(recipe) else "tasks",
    may_have_network=True,
    check=_check,
)
