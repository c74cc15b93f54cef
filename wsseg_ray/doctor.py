"""Checks of what a recipe needs: what is there, what is missing, and how to get it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from wsseg_ray import datasets, pipeline
from wsseg_ray.choices import settle
from wsseg_ray.datasets import Listing
from wsseg_ray.engine.stage import Finding
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import Recipe

PHOTO_BYTES = 2_000_000  # of tables per photo: 0.6 MB with 800 proposals and 512-d features, scaled up to 2,000


def examine(recipe: Recipe) -> list[Finding]:
    """Check data, disk and GPUs for a recipe, and run the checks of each stage. Does not start Ray."""
    recipe, choices = settle(recipe)
    found, listing = _data(recipe)
    found = [*(Finding("auto", True, f"{key}: {value} ({reason})") for key, value, reason in choices), *found]
    for stage in pipeline.stages_of(recipe):
        found += stage.check(recipe, listing)
    return [*found, _gpu(recipe)]


def _data(recipe: Recipe) -> tuple[list[Finding], Listing]:
    with tempfile.TemporaryDirectory() as own:
        try:
            listing = datasets.list_photos(recipe.dataset, own, recipe.seed)
        except DatasetError as error:
            return [Finding("data", False, str(error))], Listing([], [], [])
    good = [photo for photo in listing.photos if not photo.error]
    counts = {split: sum(photo.split == split for photo in good) for split in ("train", "val")}
    masks = sum(bool(photo.mask_uri) for photo in good)
    text = f"{counts['train']} training and {counts['val']} val photos, {masks} with masks, "
    text += f"{len(listing.classes)} classes"
    if len(good) < len(listing.photos):
        first = next(photo for photo in listing.photos if photo.error)
        text += f"; {len(listing.photos) - len(good)} cannot be used, first {first.image_id}: {first.error}"
    free, need = shutil.disk_usage(Path.cwd()).free, len(good) * PHOTO_BYTES
    disk = f"{free / 1e9:.1f} GB free here, the run needs up to {need / 1e9:.1f} GB"
    return [Finding("data", counts["train"] > 0, text), Finding("disk", free > need, disk)], listing


def _gpu(recipe: Recipe) -> Finding:
    count = torch.cuda.device_count()
    if count:
        return Finding("gpu", True, ", ".join(torch.cuda.get_device_name(i) for i in range(count)))
    return Finding("gpu", recipe.runtime.use_gpu is not True, "none: it runs on the CPU, slower")
