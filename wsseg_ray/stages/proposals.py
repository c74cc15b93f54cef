"""Stage `proposals`: the candidate regions of every training photo, and the few that train HCP. CPU tasks.

Where networks draw in the photo (a backbone the boundaries, SAM masks), tasks read and decode, actors (one per GPU)
draw, tasks do the rest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.base import BaseBackbone
from wsseg_ray.datasets import Listing
from wsseg_ray.datasets.place import Place
from wsseg_ray.engine.checkpoints import weights_finding, weights_source
from wsseg_ray.engine.device import device_of
from wsseg_ray.engine.stage import Finding, Job, Stage, Step, Work
from wsseg_ray.errors import RecipeError
from wsseg_ray.hcp.hypotheses import select_hypotheses
from wsseg_ray.proposals import SOURCES, ProposalFileError, Source, generate, sam
from wsseg_ray.proposals.boundaries import BOUNDARIES, Boundary, BoundaryFinder
from wsseg_ray.proposals.boundaries.hypercolumn import find, load
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.recipe import ProposalsSection, Recipe
from wsseg_ray.stages.rows import DrawnRow, PhotoRow, add_photo, photo_rows
from wsseg_ray.storage import read_bytes, shown
from wsseg_ray.tables import PROPOSALS, ProposalRow


def _work(job: Job) -> Work[ProposalRow]:
    steps: tuple[Step, ...] = (Step(_propose, ProposalRow),)
    if _has_network(job.recipe):
        steps = (Step(add_photo, PhotoRow), Step(_Drawing, DrawnRow, actor=True), *steps)
    return Work(PROPOSALS, photo_rows, steps)


def _has_backbone(recipe: Recipe) -> bool:
    return _source(recipe).takes_boundary and recipe.proposals.backbone is not None


def _has_network(recipe: Recipe) -> bool:
    return _has_backbone(recipe) or recipe.proposals.sam is not None


def _source(recipe: Recipe) -> Source:
    return SOURCES.get(recipe.proposals.source)


def _finder(recipe: Recipe) -> BoundaryFinder:
    assert recipe.proposals.backbone is not None
    return BOUNDARIES.get(recipe.proposals.backbone)


def _backbone(recipe: Recipe) -> BaseBackbone:
    weights = recipe.proposals.weights
    return load(_finder(recipe), weights_source(weights), weights)


def _sam(settings: ProposalsSection) -> sam.Sam:
    encoder, decoder = (_onnx(f"{settings.sam}{name}") for name in sam.FILES)
    return sam.load(encoder, decoder)


def _onnx(place: str) -> bytes:
    try:
        return read_bytes(place)
    except OSError as error:
        raise RecipeError(f"proposals.sam: {shown(place)} cannot be read ({error})") from error


class _Drawing:
    """The networks that draw in photos, on this actor's device."""

    def __init__(self, job: Job) -> None:
        self._settings = job.recipe.proposals
        self._backbone = self._sam = None
        if _has_backbone(job.recipe):
            self._finder = _finder(job.recipe)
            self._backbone = _backbone(job.recipe).to(device_of(job.recipe))
        if self._settings.sam:
            self._sam = _sam(self._settings)

    def __call__(self, row: PhotoRow) -> DrawnRow:
        drawn = DrawnRow(**vars(row))
        if self._backbone:
            drawn.boundary = find(self._finder, self._backbone, generate.shrink(row.photo)).strength
            drawn.rows, drawn.columns = drawn.boundary.shape
        if self._sam:
            masks, drawn.quality = sam.find_masks(self._sam, row.photo, self._settings.sam_points)
            drawn.masks = np.packbits(masks)
        return drawn


def _propose(job: Job, row: PhotoRow) -> ProposalRow:
    hcp = job.recipe.hcp
    regions, objectness = _regions(job, row)
    hypotheses = select_hypotheses(
        regions.boxes,
        objectness,
        hcp.hypotheses,
        hcp.min_area,
        hcp.max_aspect,
        clustered=hcp.clustered_boxes,
    )
    is_mask = np.zeros(len(regions), np.uint8)
    if isinstance(row, DrawnRow) and len(row.quality):
        regions, objectness, is_mask = sam.joined(regions, objectness, _masks_of(row), row.quality)
    return ProposalRow(
        height=row.height,
        width=row.width,
        superpixels=regions.superpixels,
        indptr=regions.membership.indptr,
        indices=regions.membership.indices,
        objectness=objectness,
        is_mask=is_mask,
        hypotheses=hypotheses,
    )


def _masks_of(row: DrawnRow) -> np.ndarray:
    """SAM's masks (n, H, W) bool of a row."""
    shape = (len(row.quality), row.height, row.width)
    return np.unpackbits(row.masks, count=int(np.prod(shape))).astype(bool).reshape(shape)


def _regions(job: Job, row: PhotoRow) -> tuple[RegionProposals, np.ndarray]:
    source, count = _source(job.recipe), job.recipe.proposals.count
    if source.from_file is not None:
        return _from_file(job, source, row)
    assert source.from_photo is not None
    if not source.takes_boundary:
        return source.from_photo(_decoded(job, row).photo, count)
    boundary = None
    if isinstance(row, DrawnRow) and len(row.boundary):
        boundary = Boundary(row.boundary, _finder(job.recipe).learned)
    return source.from_photo(_decoded(job, row).photo, count, boundary)


def _decoded(job: Job, row: PhotoRow) -> PhotoRow:
    return row if isinstance(row, DrawnRow) else add_photo(job, row)


def _from_file(job: Job, source: Source, row: PhotoRow) -> tuple[RegionProposals, np.ndarray]:
    assert source.from_file is not None
    place = Place.at(job.recipe.proposals.root or "") / f"{row.image_id}{source.suffix}"
    try:
        data = read_bytes(place.uri)
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
        named = BACKBONES.get(_finder(recipe).backbone).weights
        found.append(weights_finding("proposals", settings.weights, lambda: (_backbone(recipe), []), named))
    if settings.sam:
        found.append(_sam_finding(settings))
    if source.from_file is not None and settings.root is not None and "://" not in settings.root:
        names = {path.name for path in Path(settings.root).iterdir()} if Path(settings.root).is_dir() else set()
        train = there = 0
        for photo in listing.photos:
            if photo.split == "train" and not photo.error:
                train += 1
                there += f"{photo.image_id}{source.suffix}" in names
        text = f"{there} of {train} training photos have a file in {shown(settings.root)}"
        found.append(Finding("proposals", there == train, text))
    return found


def _sam_finding(settings: ProposalsSection) -> Finding:
    """Whether SAM can be loaded; where it can, the run says that it is no longer one of names alone."""
    try:
        _sam(settings)
    except RecipeError as error:
        return Finding("weights", False, str(error), error)
    note = "proposals.sam: SAM has learned from outlines, so these results are not of image-level labels alone"
    return Finding("weights", True, f"SAM: {shown(settings.sam or '')}", note=note)


STAGE = Stage(
    name="proposals",
    reads=("images",),
    writes=PROPOSALS.folder,
    settings=lambda recipe: [
        "proposals",
        "hcp.hypotheses",
        "hcp.clustered_boxes",
        "hcp.min_area",
        "hcp.max_aspect",
    ],
    table=PROPOSALS,
    work=_work,
    workers=lambda recipe: "actors" if _has_network(recipe) else "tasks",
    may_have_network=True,
    check=_check,
)
