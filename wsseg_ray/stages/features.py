"""Stages `features` and `features_segmenter`: a frozen backbone looks at every photo once, on actors (one per GPU).

Tasks read, decode and resize photos to whole cells; actors do nothing but tensor work, on GPUs with many photos of a
shard together; tasks write half precision. HCP reads `features`, and so do the segmentation networks that have the same
backbone; others read `features_segmenter`.
"""

# ruff: noqa: RUF009 (a column is a dataclass field with its type)

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.base import BaseBackbone, Projection
from wsseg_ray.backbones.masked import canvas_pixels
from wsseg_ray.backbones.photos import normalise, whole_cells
from wsseg_ray.backbones.precision import mixed_precision
from wsseg_ray.backbones.weights import Bare, load_weights
from wsseg_ray.engine import training
from wsseg_ray.engine.checkpoints import WEIGHTS, restore, weights_source
from wsseg_ray.engine.device import device_of
from wsseg_ray.engine.shards import guard
from wsseg_ray.engine.stage import Job, Runner, Stage, Step, Work
from wsseg_ray.errors import RecipeError
from wsseg_ray.hcp.reduction import fit_pca, project
from wsseg_ray.recipe import Recipe
from wsseg_ray.segmentation.inference import scaled
from wsseg_ray.stages import hcp
from wsseg_ray.stages.rows import PhotoRow, add_photo, photo_rows
from wsseg_ray.stages.stored import (
    PROJECTION,
    hcp_reads,
    levels_stored,
    map_of,
    packed,
    read_projection,
    segmenters_read,
    views_stored,
)
from wsseg_ray.tables import FEATURES, IMAGES, SEGMENTER_FEATURES, FeatureRow, Row, Table, array, number

SAMPLE, SAMPLE_CELLS = 256, 64  # photos, and cells of each, on which PCA is fitted: 16 for each of 1,024 dimensions
MANY = 2**23  # pixels that pass a GPU together: about 50 photos of 400x400


@dataclass
class CellsRow(PhotoRow):
    """A photo, and its copy of whole cells."""

    rows: int = number("int32", "pixels")
    columns: int = number("int32", "pixels")
    whole: np.ndarray = array("uint8", ("rows", "columns", 3), "(h, w, 3) RGB, whole cells in height and width")


def _work(table: Table[FeatureRow], job: Job) -> Work[FeatureRow]:
    steps = (Step(partial(_whole_cells, table), CellsRow), Step(partial(Looker, table), FeatureRow, actor=True))
    return Work(table, photo_rows, steps)


def _run(table: Table[FeatureRow], job: Job, runner: Runner) -> int:
    """Write the features of all photos, and before them the projection where they are reduced."""
    stage = STAGE if table == FEATURES else SEGMENTER
    if job.recipe.features.dims and not job.run.exists(table.folder, PROJECTION):
        runner.call(job, stage, partial(_fit_projection, table))
    return runner.map_shards(job, stage, _work(table, job), job.shards(IMAGES))


def _fit_projection(table: Table[FeatureRow], job: Job) -> None:
    """PCA of the cells of some training photos, evenly spread; scaled, so that their mean square is 1."""
    looker, dims = Looker(table, job), job.recipe.features.dims
    assert dims is not None
    photos = training.index(job, IMAGES)
    wanted = {photos.photo(i * len(photos) // SAMPLE) for i in range(SAMPLE)}
    rng, cells, error = np.random.default_rng(job.recipe.seed), [], ""

    def look(row: PhotoRow) -> Row:
        every = map_of(looker(_whole_cells(table, job, row))).float().flatten(1).T.numpy()
        cells.append(every[rng.permutation(len(every))[:SAMPLE_CELLS]])
        return Row()

    for shard in sorted({shard for shard, _ in wanted}):
        for row in photo_rows(job, shard):
            if (shard, row.image_id) in wanted:
                error = guard(look, Row, row).error or error
    if not cells:
        raise RuntimeError(f"features: the projection needs photos, and none could be used; the last error: {error}")
    sample = np.concatenate(cells)
    mean, components, _ = fit_pca(sample, energy=1.0, dims=dims)
    if len(components) < dims:
        raise RecipeError(f"features.dims: {dims} is more than the {len(components)} dimensions that the features have")
    components /= np.sqrt(np.square(project(sample, mean, components)).mean())
    buffer = io.BytesIO()
    np.savez(buffer, mean=mean, components=components.astype(np.float32))
    job.run.write_bytes(buffer.getvalue(), table.folder, PROJECTION)


def _section(recipe: Recipe, table: Table[FeatureRow]) -> Any:
    return recipe.hcp if table == FEATURES else recipe.segmentation


def _whole_cells(table: Table[FeatureRow], job: Job, row: PhotoRow) -> CellsRow:
    """The photo, resized to whole cells: so more photos have the same size."""
    photo = add_photo(job, row).photo
    stride = BACKBONES.get(_section(job.recipe, table).backbone).stride or 1
    rows, columns = whole_cells(photo.shape[0], photo.shape[1], stride)
    whole = photo
    if photo.shape[:2] != (rows, columns):
        whole = np.asarray(Image.fromarray(photo).resize((columns, rows), Image.Resampling.BILINEAR))
    return CellsRow(**vars(row), rows=rows, columns=columns, whole=whole)


class Looker:
    """The frozen backbone on this actor's device."""

    def __init__(self, table: Table[FeatureRow], job: Job) -> None:
        self._device = device_of(job.recipe)
        self._backbone: BaseBackbone = frozen_backbone(job, table).to(self._device)
        self._reduce: Projection | None = None
        if job.run.exists(table.folder, PROJECTION):
            state = read_projection(job, table)
            self._reduce = Projection(*reversed(state["components"].shape)).to(self._device)
            self._reduce.load_state_dict(state)
        self._levels, self._views = levels_stored(job.recipe, table), views_stored(job.recipe)
        self._colours = hcp.colours_of(_section(job.recipe, table).backbone)
        # On a CPU several photos at once take as long, and rounding would depend on which ones pass together.
        self.many = self._many if self._device.type == "cuda" else None

    def __call__(self, row: CellsRow) -> FeatureRow:
        return self._look([row.whole[None]])[0][0]

    def _many(self, rows: Sequence[CellsRow]) -> list[FeatureRow]:
        places: dict[tuple[int, int], list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault((row.rows, row.columns), []).append(place)
        found: dict[int, FeatureRow] = {}
        for group in together({size: len(own) for size, own in places.items()}):
            parts = [[places[size].pop() for _ in range(count)] for size, count in group]
            looked = self._look([np.stack([rows[place].whole for place in part]) for part in parts])
            for part, own in zip(parts, looked, strict=True):
                found |= zip(part, own, strict=True)
        return [found[place] for place in range(len(rows))]

    @torch.no_grad()
    def _look(self, batches: Sequence[np.ndarray]) -> list[list[FeatureRow]]:
        """Rows of batches of photos (B, H, W, 3), each of another size."""
        shown = [normalise(torch.tensor(photos, device=self._device), *self._colours) for photos in batches]
        views = [(scale, mirrored, self._levels_of(shown, scale, mirrored)) for scale, mirrored in self._views]
        return packed(
            [[(scale, mirrored, levels[place]) for scale, mirrored, levels in views] for place in range(len(batches))]
        )

    def _levels_of(
        self, batches: Sequence[torch.Tensor], scale: float, mirrored: bool
    ) -> list[dict[str, torch.Tensor]]:
        """Of each batch the levels that are stored, of one view."""
        seen = [scaled(photos, scale) for photos in batches]
        with mixed_precision(self._device):
            found = self._backbone.levels_by_size([photos.flip(3) for photos in seen] if mirrored else seen)
            if self._reduce is not None:
                for levels in found:
                    levels["out"] = self._reduce(levels["out"])
        return [{name: levels[name] for name in self._levels} for levels in found]


def together(sizes: Mapping[tuple[int, int], int]) -> Iterator[list[tuple[tuple[int, int], int]]]:
    """Groups of photos for one canvas each, of at most MANY pixels.

    Arguments:
        sizes: how many photos there are of each (H, W).
    Yields sizes, and how many photos of each.
    """
    group: Counter[tuple[int, int]] = Counter()
    for size in sorted(sizes):
        for _ in range(sizes[size]):
            wider = group + Counter([size])
            pixels = canvas_pixels(wider)
            if group and (pixels is None or pixels > MANY):
                yield list(group.items())
                wider = Counter([size])
            group = wider
    if group:
        yield list(group.items())


def frozen_backbone(job: Job, table: Table[FeatureRow]) -> BaseBackbone:
    """The backbone that looks at the photos of a table."""
    settings = _section(job.recipe, table)
    torch.manual_seed(job.recipe.seed)
    network = Bare(BACKBONES.get(settings.backbone))
    trained = table == SEGMENTER_FEATURES and settings.weights is None
    if trained:  # HCP's, which was trained before this stage
        state = restore(job.run, hcp.FOLDER, WEIGHTS)
        assert state is not None
        network.load_state_dict({key: value for key, value in state.items() if key.startswith("backbone.")})
    elif settings.weights not in (None, "random"):
        load_weights(network, weights_source(settings.weights), settings.weights)
    network.requires_grad_(False)
    return network.backbone.eval()


def _also(table: Table[FeatureRow], job: Job) -> Any:
    """The levels that are stored; and, of a backbone at random, the seed."""
    random = _section(job.recipe, table).weights in (None, "random")
    return [levels_stored(job.recipe, table), job.recipe.seed if random else None]


STAGE = Stage(
    name=FEATURES.folder,
    reads=("images",),
    writes=FEATURES.folder,
    run=partial(_run, FEATURES),
    settings=lambda recipe: ["features", "hcp.backbone", "hcp.weights"],
    also=partial(_also, FEATURES),
    table=FEATURES,
    work=partial(_work, FEATURES),
    needed=lambda recipe: FEATURES in (hcp_reads(recipe), segmenters_read(recipe)),
    workers=lambda recipe: "actors",
    split="all",
)
SEGMENTER = Stage(
    name=SEGMENTER_FEATURES.folder,
    reads=("images", hcp.FOLDER),
    writes=SEGMENTER_FEATURES.folder,
    run=partial(_run, SEGMENTER_FEATURES),
    settings=lambda recipe: [
        *([] if hcp_reads(recipe) else ["features"]),
        "segmentation.backbone",
        "segmentation.weights",
    ],
    also=partial(_also, SEGMENTER_FEATURES),
    table=SEGMENTER_FEATURES,
    work=partial(_work, SEGMENTER_FEATURES),
    needed=lambda recipe: segmenters_read(recipe) == SEGMENTER_FEATURES,
    workers=lambda recipe: "actors",
    split="all",
)
