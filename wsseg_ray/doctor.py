"""What a recipe needs of the machine: what is there, what is missing, how to get it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from wsseg_ray import datasets
from wsseg_ray.errors import DatasetError, WeightsError
from wsseg_ray.recipe import Recipe
from wsseg_ray.stages import proposals, segmenters, train_hcp

PHOTO_BYTES = 2_000_000  # of tables a photo: 0.6 MB with 800 proposals and 512-d features, scaled up to 2,000


class Finding(NamedTuple):
    """One thing that was looked for."""

    name: str
    good: bool
    text: str


def examine(recipe: Recipe) -> list[Finding]:
    """Look for the data, weights, proposal files, FAISS, GPUs and disk that a recipe needs. Starts no Ray."""
    return [*_data(recipe), *_weights(recipe), _faiss(recipe), _gpu(recipe)]


def _data(recipe: Recipe) -> list[Finding]:
    with tempfile.TemporaryDirectory() as demo:
        try:
            listing = datasets.list_photos(recipe.dataset, demo, recipe.seed)
        except DatasetError as error:
            return [Finding("data", False, str(error))]
        good = [photo for photo in listing.photos if not photo.error]
        counts = {split: sum(photo.split == split for photo in good) for split in ("train", "val")}
        masks = sum(bool(photo.mask_uri) for photo in good)
        text = f"{counts['train']} training and {counts['val']} val photos, {masks} with masks, "
        text += f"{len(listing.classes)} classes"
        if len(good) < len(listing.photos):
            first = next(photo for photo in listing.photos if photo.error)
            text += f"; {len(listing.photos) - len(good)} cannot be used, {first.image_id} first: {first.error}"
        findings = [Finding("data", counts["train"] > 0, text)]
        free, need = shutil.disk_usage(Path.cwd()).free, len(good) * PHOTO_BYTES
        findings.append(
            Finding("disk", free > need, f"{free / 1e9:.1f} GB free here, the run needs up to {need / 1e9:.1f} GB")
        )
        root = recipe.proposals.root
        if root is not None and "://" not in root:
            present = {path.stem for path in Path(root).iterdir()} if Path(root).is_dir() else set()
            found = sum(photo.image_id in present for photo in good if photo.split == "train")
            text = f"{found} of {counts['train']} training photos have a file in {root}"
            findings.append(Finding("proposals", found == counts["train"], text))
        return findings


def _weights(recipe: Recipe) -> list[Finding]:
    findings = []
    if recipe.proposals.has_trunk:
        try:
            proposals.check_weights(recipe)
            findings.append(Finding("weights", True, f"proposals: {recipe.proposals.weights}"))
        except (WeightsError, OSError) as error:
            findings.append(Finding("weights", False, f"proposals: {error}"))
    for name, build, weights in (
        ("HCP", lambda: train_hcp.build(recipe, 1), recipe.hcp.weights),
        (recipe.segmentation.model, lambda: segmenters.build(recipe, 1, None), recipe.segmentation.weights),
    ):
        try:
            _, fresh = build()
        except (WeightsError, OSError) as error:
            findings.append(Finding("weights", False, f"{name}: {error}"))
            continue
        random = "all layers" if weights is None else ", ".join(sorted({key.split(".")[0] for key in fresh}))
        text = f"{name}: {weights or 'none'}" + (f"; {random} start at random" if weights != "hcp" else "")
        findings.append(Finding("weights", True, text))
    return findings


def _faiss(recipe: Recipe) -> Finding:
    needed = recipe.refinement.engine == "faiss" or recipe.refinement.metric != "squared_l2"
    try:
        import faiss
    except ImportError:
        return Finding("faiss", not needed, 'not installed: pip install "wsseg_ray[cpu]", or [gpu] with CUDA')
    return Finding("faiss", True, f"{faiss.__version__}, {faiss.get_num_gpus()} GPUs")


def _gpu(recipe: Recipe) -> Finding:
    count = torch.cuda.device_count()
    if count:
        return Finding("gpu", True, ", ".join(torch.cuda.get_device_name(i) for i in range(count)))
    return Finding("gpu", recipe.runtime.use_gpu is not True, "none: it runs on the CPU, slower")
