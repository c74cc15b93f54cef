"""Stage `train_hcp`: Hypothesis-CNN-Pooling on Ray Train: image-fine-tuning, then hypothesis-fine-tuning (Sec. 3.1).

Where no conv layer is trained, what is pooled of a photo does not change: it is computed once and kept.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import numpy as np
import ray.train
import torch
from torch.nn import functional

from wsseg_ray.console import say
from wsseg_ray.datasets.pixels import read_photo
from wsseg_ray.evaluation.iou import mean_average_precision
from wsseg_ray.hcp.loss import LOSSES, hypothesis_max, label_targets
from wsseg_ray.hcp.network import HypothesisNetwork, parameter_groups
from wsseg_ray.hcp.scoring import pool_map, pool_photo, pool_regions
from wsseg_ray.hcp.trunk import freeze, learning_rate_at, load_weights, normalise
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.recipe import Recipe
from wsseg_ray.stages import training
from wsseg_ray.stages.job import Job, photo_number
from wsseg_ray.stages.rows import regions_of
from wsseg_ray.tables import read_bytes

FOLDER = "hcp"
KEPT_BYTES = 2**30  # of pooled features, a worker

Entry = tuple[np.ndarray, np.ndarray, RegionProposals]  # photo, labels, hypotheses


def run(job: Job) -> int:
    """Train the network into `hcp/`, unless it is there; returns the photos seen over all epochs."""
    if job.run.exists(FOLDER, "log.json"):  # what a training that is done writes last
        return 0
    settings = job.recipe.hcp
    photos = sum(len(ids) for _, ids in training.members(job.run, "proposals", lambda row: True))
    total = photos * (settings.image_epochs + settings.hypothesis_epochs)
    training.fit(job, "train_hcp", FOLDER, _loop, total)
    log = read_log(job)
    found = ", ".join(f"{name} {value:.1f}" for name, value in log["ap"].items() if not math.isnan(value))
    if found:
        say(f"{'':<16} val mAP {log['val_map']:.1f}: {found}")
    return total


def build(recipe: Recipe, classes: int) -> tuple[HypothesisNetwork, list[str]]:
    """The network with its first weights, and the names of the parameters that start at random.

    Raises WeightsError where the weights cannot be used.
    """
    settings = recipe.hcp
    torch.manual_seed(recipe.seed)
    network = HypothesisNetwork(settings.backbone, classes, settings.pooling)
    fresh = [name for name, _ in network.named_parameters()]
    if settings.weights is not None:
        _, fresh = load_weights(network, training.weights_source(settings.weights), settings.weights)
    freeze(network.trunk, settings.freeze)
    return network, fresh


def check_weights(recipe: Recipe) -> None:
    """Raise WeightsError where the weights cannot be used; say what will start at random."""
    _, fresh = build(recipe, 1)
    layers = list(OrderedDict.fromkeys(name.rsplit(".", 1)[0] for name in fresh))
    if recipe.hcp.weights is not None and "fc6" in layers:
        say(f"{recipe.hcp.weights} holds the conv layers alone: {', '.join(layers)} of HCP start at random")


def trained(job: Job) -> HypothesisNetwork:
    """The trained network, for scoring."""
    network = HypothesisNetwork(job.recipe.hcp.backbone, len(job.classes), job.recipe.hcp.pooling)
    network.load_state_dict(training.restore(job.run, FOLDER, "network.pt"))
    return network.eval()


def read_log(job: Job) -> dict[str, Any]:
    """`log`: loss an epoch; `ap` and `val_map`: average precision of the whole val photos, percentages."""
    return job.run.read_json(FOLDER, "log.json") or {}


def _loop(config: dict[str, Any]) -> None:
    job: Job = config["job"]
    settings, seed = job.recipe.hcp, job.recipe.seed
    torch.set_num_threads(config["threads"])
    device = ray.train.torch.get_device()
    network, fresh = build(job.recipe, len(job.classes))
    network.to(device)
    photos = training.members(job.run, "proposals", lambda row: True)
    feed = _Feed(job, network, device)
    log: list[dict[str, Any]] = []
    state = training.restore(job.run, FOLDER, "state.pt")
    if state:
        network.load_state_dict(state["network"])
        log = state["log"]
    seen = 0
    for name, epochs, last_rate in (
        ("image", settings.image_epochs, settings.image_last_learning_rate),
        ("hypothesis", settings.hypothesis_epochs, settings.hypothesis_last_learning_rate),
    ):
        done = sum(entry["step"] == name for entry in log)
        groups = parameter_groups(network, settings.learning_rate, last_rate, fresh)
        optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)
        if state and done and state["step"] == name:
            optimizer.load_state_dict(state["optimizer"])
        seen += done * sum(len(ids) for _, ids in photos)
        for epoch in range(done, epochs):
            for group, base in zip(optimizer.param_groups, (settings.learning_rate, last_rate), strict=True):
                group["lr"] = learning_rate_at(epoch, base, settings.decay_every)
            rng = np.random.default_rng([seed, len(log)])
            torch.manual_seed(int(rng.integers(2**31)) + ray.train.get_context().get_world_rank())
            order = training.epoch_order(photos, rng)
            losses = []
            network.train()
            for mine, size in training.batches(order, settings.batch_size):
                loss = None
                if mine:
                    logits, targets = feed.logits(mine, name == "hypothesis", len(log))
                    loss = LOSSES[settings.loss](logits, targets)
                losses.append(training.step(loss, len(mine) / size, optimizer))
                seen += size
                training.tell(job, FOLDER, seen, f"{name} epoch {epoch + 1} of {epochs}, loss {losses[-1]:.3f}")
            log.append({"step": name, "epoch": epoch, "loss": float(np.mean(losses))})
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "log": log, "step": name}
            training.save(job, state, FOLDER, "state.pt")
            ray.train.report(log[-1])
    _finish(job, network, log)


def _finish(job: Job, network: HypothesisNetwork, log: list[dict[str, Any]]) -> None:
    if ray.train.get_context().get_world_rank() != 0:
        return
    training.save(job, network.cpu().state_dict(), FOLDER, "network.pt")
    precision = _val_precision(job, network.eval())
    found = precision[~np.isnan(precision)]
    ap = dict(zip(job.classes, precision.tolist(), strict=True))
    val_map = float(found.mean()) if len(found) else float("nan")
    job.run.write_json({"log": log, "ap": ap, "val_map": val_map}, FOLDER, "log.json")


@torch.no_grad()
def _val_precision(job: Job, network: HypothesisNetwork) -> np.ndarray:
    """Average precision of each class on val photos, the whole photo as the one hypothesis: (C,) percentages."""
    scores, truth = [], []
    for shard in job.run.shards("images"):
        if not shard.startswith("val"):
            continue
        for row in job.run.read_good("images", shard).values():
            try:
                photo = normalise(read_photo(read_bytes(row["uri"]), job.recipe.dataset.max_side))[0]
            except (ValueError, OSError):
                continue  # the stage `predict` records it
            scores.append(network.classify(network.embed(pool_photo(network, photo)))[0].numpy())
            truth.append(np.isin(np.arange(len(job.classes)), row["labels"]))
    if not scores:
        return np.full(len(job.classes), np.nan)
    return mean_average_precision(np.array(scores), np.array(truth))


def _mirrored(row: Entry) -> Entry:
    photo, labels, regions = row
    return (
        np.ascontiguousarray(photo[:, ::-1]),
        labels,
        RegionProposals(regions.superpixels[:, ::-1], regions.membership),
    )


class _Feed:
    """Photos and hypotheses to logits. A photo that cannot be read any more is an error: it could be, a stage ago."""

    def __init__(self, job: Job, network: HypothesisNetwork, device: torch.device) -> None:
        self._job, self._network, self._device = job, network, device
        self._shard = lru_cache(maxsize=2 * training.WINDOW)(self._load)
        self._frozen = not any(parameter.requires_grad for parameter in network.trunk.parameters())
        self._pooled: dict[tuple[str, bool], torch.Tensor] = {}
        self._bytes = 0

    def logits(self, photos: list[tuple[str, str]], hypotheses: bool, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Max-pooled logits and targets, (B, C) each, of (shard, image_id) pairs.

        Where the trunk is trained a photo is mirrored every other time, as in the SGD procedure of [17].
        """
        rows = [self._shard(shard)[image_id] for shard, image_id in photos]
        if self._frozen:
            pooled = [self._kept(photo, row, hypotheses) for (_, photo), row in zip(photos, rows, strict=True)]
        else:
            mirror = [
                np.random.default_rng([self._job.recipe.seed, photo_number(i), epoch]).integers(2) for _, i in photos
            ]
            pooled = self._pool([_mirrored(row) if m else row for m, row in zip(mirror, rows, strict=True)], hypotheses)
        counts = [len(entry) for entry in pooled]
        logits = self._network.classify(self._network.embed(torch.cat(pooled).to(self._device).float()))
        best = torch.stack([hypothesis_max(part[None])[0] for part in logits.split(counts)])
        labels = np.zeros(best.shape, bool)
        for own, row in zip(labels, rows, strict=True):
            own[row[1]] = True
        return best, label_targets(torch.from_numpy(labels)).to(self._device)

    def _kept(self, image_id: str, row: Entry, hypotheses: bool) -> torch.Tensor:
        key = (image_id, hypotheses)
        if key not in self._pooled:
            with torch.no_grad():
                pooled = self._pool([row], hypotheses)[0].half().cpu()
            if self._bytes > KEPT_BYTES:
                return pooled
            self._pooled[key] = pooled
            self._bytes += pooled.nbytes
        return self._pooled[key]

    def _pool(self, rows: list[Entry], hypotheses: bool) -> list[torch.Tensor]:
        network = self._network
        tensors = [normalise(row[0])[0].to(self._device) for row in rows]
        if network.pooling == "warp":
            if not hypotheses:
                return [pool_photo(network, photo) for photo in tensors]
            return [pool_regions(network, photo, row[2]) for photo, row in zip(tensors, rows, strict=True)]
        # Photos of different sizes go through the trunk together, filled up at the bottom and on the right.
        height, width = (max(photo.shape[axis] for photo in tensors) for axis in (1, 2))
        padded = [functional.pad(photo, (0, width - photo.shape[2], 0, height - photo.shape[1])) for photo in tensors]
        maps = network.features(torch.stack(padded))
        pooled = []
        for feature_map, photo, row in zip(maps, tensors, rows, strict=True):
            own = feature_map[:, : photo.shape[1] // network.stride, : photo.shape[2] // network.stride]
            pooled.append(pool_map(network, own, row[2]) if hypotheses else network.pool_whole(own[None]))
        return pooled

    def _load(self, shard: str) -> dict[str, Entry]:
        """Photo, labels and hypotheses of every photo of a shard."""
        images = self._job.run.read_good("images", shard)
        loaded = {}
        for image_id, row in self._job.run.read_good("proposals", shard).items():
            photo = read_photo(read_bytes(images[image_id]["uri"]), self._job.recipe.dataset.max_side)
            regions = regions_of(row)
            hypotheses = RegionProposals(regions.superpixels, regions.membership[row["hypotheses"]])
            loaded[image_id] = (photo, images[image_id]["labels"], hypotheses)
        return loaded
