"""Stage `train_segmenter`: the segmentation networks on Ray Train, one after the other, in one worker group.

Network_A learns localization maps (Eq. 3-4), Network_B rough masks; AN from all photos, SN from those with one label.
`<name>_unrefined` is the same without the refinement (Table 3); FULL learns the true masks: the ceiling. The rivals of
Table 4 (`objectives`) learn from all photos and their labels alone.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import ray.train
import torch

from wsseg_ray.console import say
from wsseg_ray.datasets.pixels import read_photo
from wsseg_ray.hcp.trunk import freeze, learning_rate_at, load_weights, normalise
from wsseg_ray.recipe import CEILING, NETWORKS, UNREFINED, Recipe
from wsseg_ray.segmentation.deeplab import DeepLabLargeFOV, parameter_groups
from wsseg_ray.segmentation.losses import hard_cross_entropy, soft_cross_entropy
from wsseg_ray.segmentation.objectives import OBJECTIVES
from wsseg_ray.segmentation.targets import crop_and_mirror, hard_target, soft_target
from wsseg_ray.stages import train_hcp, training
from wsseg_ray.stages.job import Job, mixed_precision, photo_number
from wsseg_ray.stages.rows import superpixels_of, truth_of
from wsseg_ray.tables import read_bytes

FOLDER = "segmenters"
KEPT_BYTES = 2 * 2**30  # of a frozen trunk's feature maps, a worker


def networks(recipe: Recipe) -> list[str]:
    """Names of all networks to train: the recipe's, and without refinement where the ablation is asked for."""
    names = recipe.segmentation.networks
    ablation = recipe.segmentation.ablation and recipe.refinement.enabled
    return [*names, *(name + UNREFINED for name in names if ablation and name in NETWORKS)]


def run(job: Job) -> int:
    """Train the networks that `segmenters/` lacks; returns the photos seen over all epochs."""
    todo = [name for name in networks(job.recipe) if not job.run.exists(FOLDER, name, "network.pt")]
    total = sum(len(ids) for name in todo for _, ids in _members(job, name)) * job.recipe.segmentation.epochs
    for name in todo:
        if not _members(job, name):
            raise RuntimeError(f"{name}: no training photo for it; leave it out of segmentation.networks")
    if todo:
        job.run.delete(FOLDER, "progress.json")
        training.fit(job, "train_segmenter", FOLDER, _loop, total)
    return total


def build(recipe: Recipe, classes: int, trunk: dict[str, torch.Tensor] | None) -> tuple[DeepLabLargeFOV, list[str]]:
    """A network with its first weights, and the names of the parameters that start at random.

    Arguments:
        trunk: state of this run's HCP network, for `segmentation.weights: hcp`.
    Raises WeightsError where the weights cannot be used.
    """
    settings = recipe.segmentation
    torch.manual_seed(recipe.seed)
    network = DeepLabLargeFOV(settings.model, classes + 1)
    fresh = [name for name, _ in network.named_parameters()]
    if settings.weights == "hcp":
        if trunk is not None:
            kept = {key: value for key, value in trunk.items() if key.startswith("trunk.")}
            network.load_state_dict(kept, strict=False)
            fresh = [name for name in fresh if name not in kept]
    elif settings.weights is not None:
        _, fresh = load_weights(network, training.weights_source(settings.weights), settings.weights)
    freeze(network.trunk, settings.freeze)
    return network, fresh


def check_weights(recipe: Recipe) -> None:
    """Raise WeightsError where the weights cannot be used; say what will start at random."""
    _, fresh = build(recipe, 1, None)
    layers = list(OrderedDict.fromkeys(name.rsplit(".", 1)[0] for name in fresh))
    if recipe.segmentation.weights not in (None, "hcp") and "fc6" in layers:
        say(
            f"{recipe.segmentation.weights} holds the conv layers alone: {', '.join(layers)} of DeepLab start at random"
        )


def trained(job: Job, name: str) -> DeepLabLargeFOV:
    """A trained network, for prediction."""
    network = DeepLabLargeFOV(job.recipe.segmentation.model, len(job.classes) + 1)
    network.load_state_dict(training.restore(job.run, FOLDER, name, "network.pt"))
    return network.eval()


def read_log(job: Job, name: str) -> list[dict[str, float]]:
    """Loss of every epoch."""
    return job.run.read_json(FOLDER, name, "log.json") or []


def _members(job: Job, name: str) -> list[tuple[str, list[str]]]:
    if name == CEILING:
        return training.members(job.run, "supervision", lambda row: bool(row["mask_uri"]))
    single = name.startswith("SN")
    return training.members(job.run, "supervision", lambda row: not single or len(row["labels"]) == 1)


def _loop(config: dict[str, Any]) -> None:
    job: Job = config["job"]
    torch.set_num_threads(config["threads"])
    names = [name for name in networks(job.recipe) if not job.run.exists(FOLDER, name, "network.pt")]
    feed = _Feed(job, ray.train.torch.get_device(), CEILING in names)
    seen = 0
    for name in names:
        seen = _train(job, name, feed, seen)


def _train(job: Job, name: str, feed: _Feed, seen: int) -> int:
    settings, device = job.recipe.segmentation, ray.train.torch.get_device()
    hcp = training.restore(job.run, train_hcp.FOLDER, "network.pt") if settings.weights == "hcp" else None
    network, fresh = build(job.recipe, len(job.classes), hcp)
    network.to(device)
    groups = parameter_groups(network, settings.learning_rate, fresh)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    bases = [group["lr"] for group in groups]
    photos = _members(job, name)
    log: list[dict[str, float]] = []
    state = training.restore(job.run, FOLDER, name, "state.pt")
    if state:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        log = state["log"]
        seen += len(log) * sum(len(ids) for _, ids in photos)
    for epoch in range(len(log), settings.epochs):
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["lr"] = learning_rate_at(epoch, base, settings.decay_every)
        rng = np.random.default_rng([job.recipe.seed, epoch])
        torch.manual_seed(int(rng.integers(2**31)) + ray.train.get_context().get_world_rank())
        network.train()
        losses = []
        for mine, size in training.batches(training.epoch_order(photos, rng), settings.batch_size):
            with mixed_precision(device):
                loss = feed.loss(network, name, mine, epoch) if mine else None
            losses.append(training.step(loss, len(mine) / size, optimizer))
            seen += size
            training.tell(job, FOLDER, seen, f"{name} epoch {epoch + 1} of {settings.epochs}, loss {losses[-1]:.3f}")
        log.append({"epoch": epoch, "loss": float(np.mean(losses))})
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "log": log}
        training.save(job, state, FOLDER, name, "state.pt")
        training.tensorboard(job, name, [("loss", entry["loss"]) for entry in log])
        ray.train.report({"network": name, **log[-1]})
    if ray.train.get_context().get_world_rank() == 0:
        job.run.write_json(log, FOLDER, name, "log.json")
    training.save(job, network.cpu().state_dict(), FOLDER, name, "network.pt")
    return seen


class _Feed:
    """Photos and their supervision, cropped and on the output grid."""

    def __init__(self, job: Job, device: torch.device, with_masks: bool) -> None:
        self._job, self._device, self._with_masks = job, device, with_masks
        self._shard = lru_cache(maxsize=2 * training.WINDOW)(self._load)
        self._kept: dict[bytes, torch.Tensor] = {}
        self._bytes = 0

    def loss(self, network: DeepLabLargeFOV, name: str, photos: list[tuple[str, str]], epoch: int) -> torch.Tensor:
        """Mean loss of this worker's photos, (shard, image_id) pairs."""
        pixels, targets = zip(*(self._sample(network, name, *photo, epoch) for photo in photos), strict=True)
        logits = network.head(self._features(network, pixels)).float()
        if name in OBJECTIVES:
            return torch.stack([OBJECTIVES[name](*_own(*pair)) for pair in zip(logits, targets, strict=True)]).mean()
        target = torch.from_numpy(np.stack(targets)).to(self._device)
        return soft_cross_entropy(logits, target) if _is_soft(name) else hard_cross_entropy(logits, target)

    def _features(self, network: DeepLabLargeFOV, pixels: tuple[np.ndarray, ...]) -> torch.Tensor:
        """Feature maps of the crops. Those of a frozen trunk are kept: a photo within the crop has two."""
        if any(parameter.requires_grad for parameter in network.trunk.parameters()):
            return network.features(normalise(np.stack(pixels)).to(self._device))
        keys = [blake2b(crop.tobytes(), digest_size=16).digest() for crop in pixels]
        new = {key: crop for key, crop in zip(keys, pixels, strict=True) if key not in self._kept}
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if new:
            with torch.no_grad():
                maps = network.features(normalise(np.stack(list(new.values()))).to(self._device)).half()
            found |= dict(zip(new, maps, strict=True))
            for key in new:
                if self._bytes < KEPT_BYTES:
                    self._kept[key] = found[key].clone()
                    self._bytes += found[key].nbytes
        return torch.stack([found[key] for key in keys]).float()

    def _sample(
        self, network: DeepLabLargeFOV, name: str, shard: str, image_id: str, epoch: int
    ) -> tuple[np.ndarray, Any]:
        """A crop, and its target; for a rival the channels that occur (C,) and how much of the grid is the photo's."""
        row = self._shard(shard)[image_id]
        rng = np.random.default_rng([self._job.recipe.seed, photo_number(image_id), epoch])
        crop = self._job.recipe.segmentation.crop
        over = row["truth"] if name == CEILING else row["superpixels"]
        photo, (over,), valid = crop_and_mirror(rng, row["photo"], [over], crop)
        cells = network.grid_size(crop)
        if name in OBJECTIVES:
            present = np.isin(np.arange(len(self._job.classes) + 1), [0, *(row["labels"] + 1)])
            return photo, (present, tuple(network.grid_size(int(valid.any(axis=axis).sum())) for axis in (1, 0)))
        suffix = UNREFINED if name.endswith(UNREFINED) else ""
        if name == CEILING:
            return photo, hard_target(np.arange(256, dtype=np.uint8), over, valid, cells, cells)
        if not _is_soft(name):
            mask = np.frombuffer(row["mask" + suffix], np.uint8)
            return photo, hard_target(mask, over, valid, cells, cells)
        maps = row["maps" + suffix].reshape(len(row["labels"]), -1)
        return photo, soft_target(over, valid, maps, row["labels"], len(self._job.classes), cells, cells)

    def _load(self, shard: str) -> dict[str, dict[str, Any]]:
        """Photo, superpixels and supervision of every photo of a shard; true masks where the ceiling is trained."""
        run, dataset = self._job.run, self._job.recipe.dataset
        images = run.read_good("images", shard)
        proposals = run.read_good("proposals", shard, ["height", "width", "superpixels"])
        rows = run.read_good("supervision", shard, ["labels", "maps", "mask", "maps_unrefined", "mask_unrefined"])
        for image_id, row in rows.items():
            image = images[image_id]
            row["photo"] = read_photo(read_bytes(image["uri"]), dataset.max_side)
            row["superpixels"] = superpixels_of(proposals[image_id])
            if self._with_masks and image["mask_uri"]:
                row["truth"] = truth_of(self._job, image)
        return rows


def _own(logits: torch.Tensor, target: tuple[np.ndarray, tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A rival's arguments for one photo: the logits (1, C, h, w) inside the photo, and what occurs (1, C)."""
    present, (rows, columns) = target
    return logits[None, :, :rows, :columns], torch.from_numpy(present)[None].to(logits.device)


def _is_soft(name: str) -> bool:
    return name.removesuffix(UNREFINED).endswith("_A")
