"""Stage `train_segmenter`: the segmentation networks on Ray Train, one after the other, in one worker group.

Network_A learns localization maps (Eq. 3-4), Network_B rough masks; AN from all photos, SN from those with one label.
`<name>_unrefined` is the same without the refinement (Table 3); FULL learns the true masks: the ceiling. The rivals of
Table 4 (`objectives`) learn from all photos and their labels alone, and begin as one classifier of photos, START. CAM
first learns to classify, then from its own activation maps. With `segmentation.rounds` every network but FULL learns
again from what it sees (`relabel`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import ray
import ray.train
import torch

from wsseg_ray.hcp.dropout import mixed, number_photos
from wsseg_ray.hcp.trunk import learning_rate_at, mixed_precision, normalise
from wsseg_ray.recipe import CAM, CEILING, START
from wsseg_ray.segmentation.deeplab import parameter_groups
from wsseg_ray.segmentation.losses import IGNORE, hard_cross_entropy, soft_cross_entropy
from wsseg_ray.segmentation.models import SegmentationNetwork
from wsseg_ray.segmentation.objectives import OBJECTIVES
from wsseg_ray.segmentation.objectives.ilp import ILP
from wsseg_ray.stages import relabel, train_hcp, training
from wsseg_ray.stages.checkpoints import restore
from wsseg_ray.stages.feed import OWN_LABELS, Batch, Step, stream, target_kind
from wsseg_ray.stages.job import Job
from wsseg_ray.stages.segmenters import (
    FOLDER,
    begins_with_start,
    build,
    epochs,
    file_of,
    learning_rate,
    networks,
    rounds,
)

KEPT_BYTES = 2 * 2**30  # of a frozen trunk's feature maps, a worker


def run(job: Job) -> int:
    """Train the networks that `segmenters/` lacks, round after round; returns the photos seen over all epochs."""
    todo = [name for name in networks(job.recipe) if not job.run.exists(FOLDER, name, "network.pt")]
    if not todo:
        return 0
    photos = training.index(job.run, "supervision")
    for name in todo:
        if not members(photos, name):
            raise RuntimeError(f"{name}: no training photo for it; leave it out of segmentation.networks")
    total = 0
    for round_ in range(1 + max(rounds(job.recipe, name) for name in todo)):
        names = [name for name in todo if rounds(job.recipe, name) >= round_]
        source, twins = _twins(job, names) if round_ == 0 else ("", [])
        missing = [name for name in names if not _is_done(job, name, round_)]
        if missing and round_:
            relabel.run(job, missing, round_)
        untrained = [name for name in missing if name not in twins]
        if round_ == 0 and any(begins_with_start(job.recipe, name) for name in untrained):
            untrained = [START] * (not _is_done(job, START, 0)) + untrained
        if untrained:
            total += _fit(job, photos, untrained, round_)
        for name in twins:  # they differ in how their predictions are smoothed
            for file, own in ((file_of(job.recipe, n, round_) for n in (source, name)), ("log.json", "log.json")):
                job.run.write_bytes(job.run.read_bytes(FOLDER, source, file), FOLDER, name, own)
    for name in todo:
        for round_ in range(rounds(job.recipe, name)):
            job.run.delete(FOLDER, name, file_of(job.recipe, name, round_))
            job.run.delete(f"{OWN_LABELS}-{round_ + 1}")
    return total


def _fit(job: Job, photos: training.Index, names: list[str], round_: int) -> int:
    total = sum(epochs(job.recipe, name) * sum(len(ids) for _, ids in members(photos, name)) for name in names)
    job.run.delete(FOLDER, training.PROGRESS)
    training.fit(job, "train_segmenter", FOLDER, partial(_loop, names, round_), total, photos)
    return total


def _twins(job: Job, names: list[str]) -> tuple[str, list[str]]:
    """Of MIL-ILP's networks, which are one and the same in round 0, the one that is or will be trained, and its copies.

    Arguments:
        names: of the networks that are not trained yet.
    """
    own = [name for name in names if name in ILP]
    trained = [name for name in networks(job.recipe) if name in ILP and _is_done(job, name, 0)]
    source, *_ = [*trained, *own, ""]
    return source, [name for name in own if name != source]


def _is_done(job: Job, name: str, round_: int) -> bool:
    return job.run.exists(FOLDER, name, file_of(job.recipe, name, round_))


def members(photos: training.Index, name: str) -> list[tuple[str, list[str]]]:
    """The photos that a network learns from, shard by shard."""
    if name == CEILING:
        return training.chosen(photos, lambda member: member.has_mask)
    single = name.startswith("SN_")
    return training.chosen(photos, lambda member: not single or member.labels == 1)


def _loop(names: list[str], round_: int, config: dict[str, Any]) -> None:
    job: Job = config["job"]
    torch.set_num_threads(config["threads"])
    device = ray.train.torch.get_device()
    todo = [name for name in names if not _is_done(job, name, round_)]
    kept, spent = KeptFeatures(), {"busy": 0.0, "waited": 0.0}
    plan = _plan(job, ray.get(config["photos"]), todo, round_)
    for name, steps in groupby(stream(job, plan, device), key=lambda part: part[0].network):
        _train(job, name, round_, steps, kept, spent)


def _plan(job: Job, photos: training.Index, names: list[str], round_: int) -> Iterator[Step]:
    """This worker's steps of all networks, from where the first one was cut off."""
    seen, size = 0, job.recipe.segmentation.batch_size
    for name in names:
        own = members(photos, name)
        state = restore(job.run, FOLDER, name, "state.pt")
        begin = state["position"] if state and state["round"] == round_ else (0, 0)
        for epoch in range(epochs(job.recipe, name)):
            order = training.epoch_order(own, np.random.default_rng([job.recipe.seed, epoch]))
            last = (len(order) - 1) // size
            for index, (mine, count) in enumerate(training.batches(order, size)):
                if (epoch, index) >= begin:
                    yield Step(name, round_, epoch, index, mine, count, index == last, seen)
                seen += count


def _train(
    job: Job,
    name: str,
    round_: int,
    steps: Iterator[tuple[Step, Batch, float]],
    kept: KeptFeatures,
    spent: dict[str, float],
) -> None:
    settings, device = job.recipe.segmentation, ray.train.torch.get_device()
    hcp = restore(job.run, train_hcp.FOLDER, "network.pt") if settings.weights == "hcp" else None
    start = None
    if round_ == 0 and begins_with_start(job.recipe, name):
        start = restore(job.run, FOLDER, START, file_of(job.recipe, START, 0))
    network, fresh = build(job.recipe, len(job.classes), hcp, start)
    network.to(device).train()
    groups = parameter_groups(network, learning_rate(job.recipe, name), fresh, settings.weight_decay)
    optimizer = torch.optim.SGD(groups, momentum=settings.momentum)
    bases = [group["lr"] for group in groups]
    if job.recipe.runtime.compile:
        network.features, network.head = torch.compile(network.features), torch.compile(network.head)
    log: list[dict[str, float]] = (job.run.read_json(FOLDER, name, "log.json") or []) if round_ else []
    losses: list[float] = []
    state = restore(job.run, FOLDER, name, "state.pt")
    if state and state["round"] == round_:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        log, losses = state["log"], state["losses"]
    waited, worked, saved = 0.0, 0.0, time.monotonic()
    last_epoch = epochs(job.recipe, name) - 1
    for step, batch, wait in steps:
        arrived = time.monotonic()
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["lr"] = learning_rate_at(step.epoch, base, settings.decay_every)
        with mixed_precision(device):
            loss, weight = batch_loss(network, step, batch, kept, job.recipe.seed) if step.photos else (None, 0)
        losses.append(training.step(loss, weight, optimizer))
        note = f"{name} epoch {step.epoch + 1} of {last_epoch + 1}, loss {losses[-1]:.3f}"
        waited, worked = waited + wait, worked + time.monotonic() - arrived
        spent["busy"] += time.monotonic() - arrived
        spent["waited"] += wait
        training.tell(job, FOLDER, step.seen + step.size, f"{note}, round {round_}" if round_ else note, **spent)
        if step.ends_epoch:
            seconds = waited + worked
            entry = {"round": round_, "epoch": step.epoch, "loss": float(np.mean(losses))}
            log.append({**entry, "seconds": seconds, "waited": waited / seconds})
            waited, worked, losses = 0.0, 0.0, []
            training.tensorboard(job, name, [("loss", entry["loss"]) for entry in log])
            if step.epoch == last_epoch:
                _keep(job, name, round_, network, log)
            ray.train.report({"network": name, **log[-1]})  # all workers wait here: what was kept is there for the next
        elif time.monotonic() - saved < 60 * job.recipe.runtime.checkpoint_minutes:
            continue
        position = (step.epoch + 1, 0) if step.ends_epoch else (step.epoch, step.index + 1)
        if position[0] <= last_epoch:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "log": log, "losses": losses}
            training.save(job, {**state, "round": round_, "position": position}, FOLDER, name, "state.pt")
        saved = time.monotonic()


def _keep(job: Job, name: str, round_: int, network: SegmentationNetwork, log: list[dict[str, float]]) -> None:
    """Keep a network that is trained; rank 0 alone writes."""
    if ray.train.get_context().get_world_rank() == 0:
        job.run.write_json(log, FOLDER, name, "log.json")
        weights = {key: tensor.cpu() for key, tensor in network.state_dict().items()}
        training.save(job, weights, FOLDER, name, file_of(job.recipe, name, round_))
        job.run.delete(FOLDER, name, "state.pt")


def batch_loss(
    network: SegmentationNetwork, step: Step, batch: Batch, kept: KeptFeatures, seed: int
) -> tuple[torch.Tensor, float]:
    """Mean loss of a batch, by what the step's network learns from, and over how many photos or cells it is the mean.

    Cells that lie outside a photo do not count, so batches of equally many photos can differ in cells.
    """
    number_photos(network, [mixed(seed, number, step.epoch) for number in batch.numbers])
    logits = network.head(kept.features(network, batch)).float()
    kind = target_kind(step.network, step.round)
    if kind == "labels":
        losses = [_label_loss(step.network, *pair) for pair in zip(logits, batch.targets, strict=True)]
        return torch.stack(losses).mean(), len(losses)
    if kind == "maps":
        return soft_cross_entropy(logits, batch.targets), int((batch.targets.sum(dim=1) > 0).sum())
    labels = batch.targets[:, 0].long()
    return hard_cross_entropy(logits, labels), int((labels != IGNORE).sum())


def _label_loss(name: str, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """An objective's loss of one photo: of the cells inside the photo, and of the channels that it has."""
    inside = target[0] > 0
    rows, columns = int(inside.any(dim=1).sum()), int(inside.any(dim=0).sum())
    objective = OBJECTIVES[CAM if name == START else name]
    return objective(logits[None, :, :rows, :columns], target.flatten(1).any(dim=1)[None])


class KeptFeatures:
    """Feature maps of crops that a frozen trunk has seen: a photo within the crop has two, itself and its mirror."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[str, torch.Tensor]] = {}
        self._bytes = 0

    def features(self, network: SegmentationNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """`network.features` of the photos; of a trunk that trains, always anew."""
        if any(parameter.requires_grad for parameter in network.trunk.parameters()):
            return network.features(normalise(batch.photos))
        new = {number: place for place, number in enumerate(batch.numbers) if number not in self._kept}
        found = {number: self._kept[number] for number in batch.numbers if number in self._kept}
        if new:
            with torch.no_grad():
                levels = network.features(normalise(batch.photos[list(new.values())]))
            for place, number in enumerate(new):
                found[number] = {level: maps[place].half() for level, maps in levels.items()}
                if self._bytes < KEPT_BYTES:
                    self._kept[number] = found[number]
                    self._bytes += sum(maps.nbytes for maps in found[number].values())
        levels = found[batch.numbers[0]]
        return {level: torch.stack([found[n][level] for n in batch.numbers]).float() for level in levels}
