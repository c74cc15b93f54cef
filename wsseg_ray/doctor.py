"""Checks of what a recipe needs: what is there, what is missing, and how to get it."""

from __future__ import annotations

import io
import shutil
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from wsseg_ray import datasets, pipeline
from wsseg_ray.choices import settle
from wsseg_ray.datasets import Listing
from wsseg_ray.engine.stage import Finding
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import Recipe
from wsseg_ray.sources import read_bytes

FEW = 20  # training photos
MOST_COMPARED = 20_000  # photos: a minute or two
CELLS = 64  # numbers of `look`
APART = 3  # numbers in which photos that look alike may differ
PHOTO_BYTES = 2_000_000  # of tables per photo: 0.6 MB with 800 proposals and 512-d features, scaled up to 2,000


def examine(recipe: Recipe) -> list[Finding]:
    """Check data, disk and GPUs for a recipe, and run the checks of each stage. Does not start Ray."""
    recipe, choices = settle(recipe)
    found, listing = _data(recipe)
    if found[0].good:
        found += [_classes(listing), *_alike(listing)]
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
    counts, masks, bad, first = {"train": 0, "val": 0}, 0, 0, ""
    for photo in listing.photos:
        if photo.error:
            bad, first = bad + 1, first or f"{photo.image_id}: {photo.error}"
        else:
            counts[photo.split] += 1
            masks += bool(photo.mask_uri)
    text = f"{counts['train']} training and {counts['val']} val photos, {masks} with masks, "
    text += f"{len(listing.classes)} classes"
    if bad:
        text += f"; {bad} cannot be used, first {first}"
    free, need = shutil.disk_usage(Path.cwd()).free, sum(counts.values()) * PHOTO_BYTES
    disk = f"{free / 1e9:.1f} GB free here, the run needs up to {need / 1e9:.1f} GB"
    return [Finding("data", counts["train"] > 0, text), Finding("disk", free > need, disk)], listing


def _classes(listing: Listing) -> Finding:
    """Training photos of each class, and classes that have too few."""
    counts = dict.fromkeys(listing.classes, 0)
    for photo in listing.photos:
        if photo.split == "train" and not photo.error:
            for label in photo.labels:
                counts[listing.classes[label]] += 1
    text = f"training photos per class: {', '.join(f'{name} {count}' for name, count in counts.items())}"
    few = [name for name, count in counts.items() if 0 < count < FEW]
    if few:
        text += f"; a class with under {FEW} photos is hardly learned: add photos of {', '.join(few)}"
    none = [name for name, count in counts.items() if not count]
    if none:
        text += f"; no training photo at all: {', '.join(none)}; leave them out by dataset.classes, or add photos"
    return Finding("classes", not none, text)


def _alike(listing: Listing) -> list[Finding]:
    """Whether photos of val look like photos of train: then val's figures are too good."""
    usable = (photo for photo in listing.photos if not photo.error and "://" not in photo.uri)
    local = list(islice(usable, MOST_COMPARED + 1))
    if len(local) > MOST_COMPARED:
        return []
    looks: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    names: dict[str, list[str]] = {"train": [], "val": []}
    for photo in local:
        try:
            looks[photo.split].append(look(read_bytes(photo.uri)))
        except (OSError, ValueError):
            continue  # stage `images` says what is wrong with it
        names[photo.split].append(photo.image_id)
    if not looks["train"] or not looks["val"]:
        return []
    train, pairs = np.stack(looks["train"]), []
    for name, own in zip(names["val"], looks["val"], strict=True):
        same = train @ own
        if same.max() >= CELLS - 2 * APART:
            pairs.append(f"{name} and {names['train'][int(same.argmax())]}")
    text = f"{len(pairs)} val photos look like a training photo"
    if not pairs:
        return [Finding("alike", True, text)]
    return [Finding("alike", False, f"{text}, first {pairs[0]}: val's figures are too good; keep them in one split")]


def look(data: bytes) -> np.ndarray:
    """What a photo looks like, (64,) float32: for each of 8 x 8 cells 1 where it is brighter than the next one, or -1.

    Photos that look alike differ in few numbers, whatever their size and compression. Costs the decoding at an eighth.
    Raises OSError or ValueError where the photo cannot be decoded.
    """
    with Image.open(io.BytesIO(data)) as photo:
        photo.draft("L", (72, 64))
        cells = np.asarray(photo.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return np.where(cells[:, 1:] > cells[:, :-1], 1, -1).astype(np.float32).ravel()


def _gpu(recipe: Recipe) -> Finding:
    count = torch.cuda.device_count()
    if count:
        return Finding("gpu", True, ", ".join(torch.cuda.get_device_name(i) for i in range(count)))
    return Finding("gpu", recipe.runtime.use_gpu is not True, "none: it runs on the CPU, slower")
