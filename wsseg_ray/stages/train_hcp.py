"""Stage `train_hcp`: Hypothesis-CNN-Pooling on Ray Train: image-fine-tuning, then hypothesis-fine-tuning (Sec. 3.1).

Beyond the paper, rounds in which regions learn from the maps that the network of the round before gives (`mining`).
Where no conv layer is trained, what is pooled of a photo does not change: it is computed once and kept.
"""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.train
import torch

from wsseg_ray.console import say
from wsseg_ray.datasets.pixels import read_photo
from wsseg_ray.hcp.dropout import mixed, number_photos
from wsseg_ray.hcp.loss import LOSSES, hypothesis_max, label_targets, region_loss
from wsseg_ray.hcp.mining import region_targets, sample_regions
from wsseg_ray.hcp.network import HypothesisNetwork, parameter_groups
from wsseg_ray.hcp.scoring import choose_candidates, pool_photos, score_proposals
from wsseg_ray.hcp.trunk import freeze, learning_rate_at, load_weights, mixed_precision, normalise
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.recipe import HcpSection, Recipe
from wsseg_ray.stages import training
from wsseg_ray.stages.checkpoints import restore, weights_source
from wsseg_ray.stages.job import Job, photo_number
from wsseg_ray.stages.rows import regions_of
from wsseg_ray.supervision.maps import localization_maps
from wsseg_ray.tables import read_bytes

FOLDER = "hcp"
KEPT_BYTES = 2**30  # of pooled features, a worker


class Entry(NamedTuple):
    """A photo that trains: the photo, its labels, all its proposals, and those that train now."""

    photo: np.ndarray
    labels: np.ndarray
    regions: RegionProposals
    chosen: np.ndarray


def run(job: Job) -> int:
    """Train the network into `hcp/`, unless it is there; returns the photos seen over all epochs."""
    if job.run.exists(FOLDER, "log.json"):  # what a training that is done writes last
        return 0
    photos = training.index(job.run, "proposals")
    total = sum(len(members) for _, members in photos) * sum(epochs for _, epochs, _ in _phases(job.recipe.hcp))
    training.fit(job, "train_hcp", FOLDER, _loop, total, photos)
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
        _, fresh = load_weights(network, weights_source(settings.weights), settings.weights)
        if "fc6.weight" in fresh:
            network.feature_scale.fill_(settings.random_fc6_scale)
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
    network.load_state_dict(restore(job.run, FOLDER, "network.pt"))
    return network.eval()


def read_log(job: Job) -> list[dict[str, Any]]:
    """The loss of each epoch."""
    return (job.run.read_json(FOLDER, "log.json") or {}).get("log", [])


def _loop(config: dict[str, Any]) -> None:
    job: Job = config["job"]
    settings, seed = job.recipe.hcp, job.recipe.seed
    torch.set_num_threads(config["threads"])
    device = ray.train.torch.get_device()
    network, fresh = build(job.recipe, len(job.classes))
    network.to(device)
    photos = training.chosen(ray.get(config["photos"]))
    feed = _Feed(job, network, device)
    log: list[dict[str, Any]] = []
    state = restore(job.run, FOLDER, "state.pt")
    if state:
        network.load_state_dict(state["network"])
        log = state["log"]
    seen, began = 0, time.monotonic()
    for phase, epochs, last_rate in _phases(settings):
        done = sum(entry["step"] == phase for entry in log)
        groups = parameter_groups(network, settings.learning_rate, last_rate, fresh)
        optimizer = torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
        if state and done and state["step"] == phase:
            optimizer.load_state_dict(state["optimizer"])
        seen += done * sum(len(ids) for _, ids in photos)
        if done < epochs:
            feed.begin(phase, _teacher(job, network, phase) if phase.startswith("region") else None)
        for epoch in range(done, epochs):
            for group, base in zip(optimizer.param_groups, (settings.learning_rate, last_rate), strict=True):
                group["lr"] = learning_rate_at(epoch, base, settings.decay_every)
            order = training.epoch_order(photos, np.random.default_rng([seed, len(log)]))
            losses = []
            network.train()
            for mine, size in training.batches(order, settings.batch_size):
                with mixed_precision(device):
                    loss = feed.loss(mine, len(log)) if mine else None
                losses.append(training.step(loss, len(mine), optimizer))
                seen += size
                note = f"{phase} epoch {epoch + 1} of {epochs}, loss {losses[-1]:.3f}"
                training.tell(job, FOLDER, seen, note, time.monotonic() - began - feed.waited, feed.waited)
            log.append({"step": phase, "epoch": epoch, "loss": float(np.mean(losses))})
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "log": log, "step": phase}
            training.save(job, state, FOLDER, "state.pt")
            training.tensorboard(job, "HCP", [(f"loss/{entry['step']}", entry["loss"]) for entry in log])
            ray.train.report(log[-1])
    _finish(job, network, log)


def _phases(settings: HcpSection) -> list[tuple[str, int, float]]:
    """Name, epochs and the last layer's rate of image-fine-tuning, hypothesis-fine-tuning and the region rounds."""
    last_rate = settings.hypothesis_last_learning_rate
    return [
        ("image", settings.image_epochs, settings.image_last_learning_rate),
        ("hypothesis", settings.hypothesis_epochs, last_rate),
        *((f"region-{number}", settings.region_epochs, last_rate) for number in range(settings.region_rounds)),
    ]


def _teacher(job: Job, network: HypothesisNetwork, phase: str) -> HypothesisNetwork:
    """The network as it was when the phase began. It is kept, so that a phase that was cut off goes on with it."""
    kept = restore(job.run, FOLDER, f"{phase}.pt")
    if kept is None:
        training.save(job, network.state_dict(), FOLDER, f"{phase}.pt")
    teacher = copy.deepcopy(network)
    teacher.load_state_dict(kept or network.state_dict())
    return teacher.eval()


def _finish(job: Job, network: HypothesisNetwork, log: list[dict[str, Any]]) -> None:
    if ray.train.get_context().get_world_rank() != 0:
        return
    training.save(job, network.cpu().state_dict(), FOLDER, "network.pt")
    job.run.write_json({"log": log}, FOLDER, "log.json")
    for phase, _, _ in _phases(job.recipe.hcp):
        job.run.delete(FOLDER, f"{phase}.pt")  # the teachers have taught


def _mirrored(entry: Entry) -> Entry:
    regions = RegionProposals(entry.regions.superpixels[:, ::-1], entry.regions.membership)
    return entry._replace(photo=np.ascontiguousarray(entry.photo[:, ::-1]), regions=regions)


class _Feed:
    """Photos to losses. A photo that cannot be read any more is an error: it could be, a stage ago."""

    def __init__(self, job: Job, network: HypothesisNetwork, device: torch.device) -> None:
        self._job, self._network, self._device = job, network, device
        self.waited = 0.0  # seconds, for photos to be read and decoded
        self._shard = lru_cache(maxsize=2 * training.WINDOW)(self._load)
        self._frozen = not any(parameter.requires_grad for parameter in network.trunk.parameters())

    def begin(self, phase: str, teacher: HypothesisNetwork | None) -> None:
        """What the next losses are about: `image`, `hypothesis`, or a region round with its teacher."""
        self._phase, self._teacher = phase, teacher
        self._pooled: dict[str, torch.Tensor] = {}
        self._mined: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._bytes = 0

    def loss(self, photos: list[tuple[str, str]], epoch: int) -> torch.Tensor:
        """Mean loss of (shard, image_id) pairs.

        Where the trunk is trained a photo is mirrored every other time, as in the SGD procedure of [17].
        """
        ids = [image_id for _, image_id in photos]
        asked = time.monotonic()
        entries = [self._shard(shard)[image_id] for shard, image_id in photos]
        self.waited += time.monotonic() - asked
        if self._teacher is not None:
            mined = [self._mine(image_id, entry) for image_id, entry in zip(ids, entries, strict=True)]
            entries = [entry._replace(chosen=rows) for entry, (rows, _) in zip(entries, mined, strict=True)]
        seed = self._job.recipe.seed
        if self._frozen:
            pooled = [self._kept(image_id, entry) for image_id, entry in zip(ids, entries, strict=True)]
        else:
            mirror = [np.random.default_rng([seed, photo_number(image_id), epoch]).integers(2) for image_id in ids]
            pooled = self._pool([_mirrored(row) if m else row for m, row in zip(mirror, entries, strict=True)])
        counts = [len(part) for part in pooled]
        number_photos(self._network, [mixed(seed, photo_number(image_id), epoch) for image_id in ids], counts)
        logits = self._network.classify(self._network.embed(torch.cat(pooled).to(self._device).float())).split(counts)
        if self._teacher is not None:
            targets = [torch.from_numpy(rows).to(self._device) for _, rows in mined]
            return torch.stack([region_loss(*pair) for pair in zip(logits, targets, strict=True)]).mean()
        best = torch.stack([hypothesis_max(part[None])[0] for part in logits])
        labels = np.zeros(best.shape, bool)
        for own, entry in zip(labels, entries, strict=True):
            own[entry.labels] = True
        targets = label_targets(torch.from_numpy(labels)).to(self._device)
        return LOSSES[self._job.recipe.hcp.loss](best, targets)

    def _mine(self, image_id: str, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
        """The regions (n,) that this photo gives in this round, and their targets (n, C), the same in every epoch."""
        if image_id not in self._mined:
            hcp, classes = self._job.recipe.hcp, len(self._job.classes)
            photo = normalise(entry.photo)[0].to(self._device)
            scores = score_proposals(self._teacher, photo, entry.regions, hcp.loss)[0].T[entry.labels]
            chosen, _ = choose_candidates(scores, hcp.threshold, hcp.min_candidates)
            maps = localization_maps(entry.regions, chosen)
            targets = region_targets(entry.regions, maps, entry.labels.tolist(), classes)
            rng = np.random.default_rng([self._job.recipe.seed, photo_number(image_id)])
            rows = sample_regions(targets, rng)
            if len(rows) == 0:  # nothing is known: the photo teaches nothing, but a batch needs a row
                rows, targets = np.zeros(1, int), np.full_like(targets, -1)
            self._mined[image_id] = (rows, targets[rows])
        return self._mined[image_id]

    def _kept(self, image_id: str, entry: Entry) -> torch.Tensor:
        if image_id not in self._pooled:
            with torch.no_grad():
                pooled = self._pool([entry])[0].half().cpu()
            if self._bytes > KEPT_BYTES:
                return pooled
            self._pooled[image_id] = pooled
            self._bytes += pooled.nbytes
        return self._pooled[image_id]

    def _pool(self, entries: list[Entry]) -> list[torch.Tensor]:
        """What is pooled of the whole photo, or of its chosen regions, for each entry."""
        photos = [normalise(entry.photo)[0].to(self._device) for entry in entries]
        if self._phase == "image":
            return pool_photos(self._network, photos, None)
        chosen = [RegionProposals(e.regions.superpixels, e.regions.membership[e.chosen]) for e in entries]
        return pool_photos(self._network, photos, chosen)

    def _load(self, shard: str) -> dict[str, Entry]:
        """Every photo of a shard, its labels, proposals and hypotheses."""
        images = self._job.run.read_good("images", shard)
        loaded = {}
        for image_id, row in self._job.run.read_good("proposals", shard).items():
            photo = read_photo(read_bytes(images[image_id]["uri"]), self._job.recipe.dataset.max_side)
            loaded[image_id] = Entry(photo, images[image_id]["labels"], regions_of(row), row["hypotheses"])
        return loaded
