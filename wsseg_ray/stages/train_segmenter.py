"""Stage `train_segmenter`: the segmentation networks, one after the other, in one group of workers.

What each learns from is said in `segmentation/networks.py`. Round 0 learns from the supervision, the true masks or the
labels alone; networks that start as a classifier begin as START, which is trained first. With `segmentation.rounds`
every network but the ceiling learns again, in a stage of its own per round, from what it sees (`relabel`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.datasets import Listing, Photo
from wsseg_ray.engine import training
from wsseg_ray.engine.checkpoints import WEIGHTS, restore, weights_finding
from wsseg_ray.engine.schedule import learning_rate_at
from wsseg_ray.engine.stage import Finding, Job, Runner, Stage, Worker
from wsseg_ray.engine.threads import one_thread_each
from wsseg_ray.errors import RecipeError
from wsseg_ray.hcp.dropout import leave_uncompiled, mixed, number_photos
from wsseg_ray.recipe import Recipe
from wsseg_ray.segmentation.losses import IGNORE, hard_cross_entropy, soft_cross_entropy
from wsseg_ray.segmentation.network import SegmentationNetwork, parameter_groups
from wsseg_ray.segmentation.networks import START, Network
from wsseg_ray.segmentation.objectives import OBJECTIVES
from wsseg_ray.stages import balance, hcp
from wsseg_ray.stages.feed import Batch, SgdStep, shows_photos_alone, stream, target_kind, together
from wsseg_ray.stages.segmenters import (
    begins_with_start,
    build,
    epochs,
    folder,
    is_trained,
    learning_rate,
    network_named,
    of_round,
    read_log,
)
from wsseg_ray.stages.stored import STORED, read_projection, segmenters_read
from wsseg_ray.tables import SUPERVISION, own_labels

NO_PHOTO = "{}: no training photo for it; leave it out of segmentation.networks"
KEPT_BYTES = 2 * 2**30  # of a frozen backbone's feature maps, per worker


def _run(round_: int, job: Job, runner: Runner) -> int:
    """Train the networks that a round lacks; returns the photos seen over all epochs."""
    todo = [network for network in of_round(job.recipe, round_) if not is_trained(job, network, round_)]
    if not todo:
        return 0
    photos = training.index(job, SUPERVISION, segmenters_read(job.recipe))
    if idle := [network.name for network in todo if not members(photos, network)]:
        raise RuntimeError(NO_PHOTO.format(idle[0]))
    twins = _twins(job, todo) if round_ == 0 else {}
    untrained = [network for network in todo if network.name not in twins]
    untrained = [*_before(job, untrained, round_), *untrained]
    total = _seen(job.recipe, photos, untrained)
    if untrained:
        balance.count(job, runner)
        runner.fit(job, stage(round_), partial(_loop, [network.name for network in untrained], round_), total, photos)
    _copy(job, twins)
    # Copies alone are work too, though no photo is seen.
    return total or len(twins)


def _before(job: Job, networks: list[Network], round_: int) -> list[Network]:
    """START, where one of the networks begins with it and it is not trained yet."""
    wanted = round_ == 0 and any(begins_with_start(job.recipe, network) for network in networks)
    return [START] if wanted and not is_trained(job, START, 0) else []


def _seen(recipe: Recipe, photos: training.Index, networks: list[Network]) -> int:
    """Photos that a training sees, over all epochs and networks."""
    return sum(epochs(recipe, network) * len(members(photos, network)) for network in networks)


def _twins(job: Job, todo: list[Network]) -> dict[str, str]:
    """Networks that equal another one after round 0, with the one that is or will be trained, whose copy they get."""
    found: dict[str, str] = {}
    for group in {network.twin_of or network.name for network in todo}:
        own = [network for network in of_round(job.recipe, 0) if group in (network.twin_of, network.name)]
        source = next((network for network in own if is_trained(job, network, 0)), None)
        missing = [network for network in own if network in todo]
        source = source or missing[0]
        found |= {network.name: source.name for network in missing if network is not source}
    return found


def _copy(job: Job, twins: dict[str, str]) -> None:
    for name, source in twins.items():
        for file in ("log.json", WEIGHTS):  # a network is trained when its weights are there
            job.run.write_bytes(job.run.read_bytes(folder(0), source, file), folder(0), name, file)


def members(photos: training.Index, network: Network) -> training.Index:
    """The photos that a network learns from."""
    kept = {"all": np.ones(len(photos), bool), "single": photos.labels == 1, "masked": photos.has_mask}
    return photos.only(kept[network.photos])


def _loop(names: list[str], round_: int, worker: Worker) -> None:
    """Train networks. Where there are at least as many as workers, each worker trains some of them alone. Workers that
    share a network would exchange its gradients at every step, and its weights would be the same.
    """
    job = worker.job
    networks = [network_named(job.recipe, name) for name in names]
    first, rest = (
        [network for network in networks if (network.name == START.name) == begins] for begins in (True, False)
    )
    _train(worker, first, round_, 0)  # together, since others begin with it
    seen = _seen(job.recipe, worker.photos, first)
    if len(rest) >= worker.world > 1:
        _train(worker.alone(), rest[worker.rank :: worker.world], round_, 0 if worker.rank else seen)
    else:
        _train(worker, rest, round_, seen)


def _train(worker: Worker, networks: list[Network], round_: int, seen: int) -> None:
    """Train those of the networks that are not trained yet, one after the other.

    Arguments:
        seen: photos that this training saw before.
    """
    job = worker.job
    lacking = training.agreed(
        worker, lambda: json.dumps([n.name for n in networks if not is_trained(job, n, round_)]).encode()
    )
    todo = [network for network in networks if network.name in json.loads(lacking)]
    states = {n.name: training.resumed(worker, folder(round_), n.name, "state.pt") for n in todo}
    kept, spent = KeptFeatures(), {"busy": 0.0, "waited": 0.0}
    with one_thread_each(worker.threads) if shows_photos_alone(worker) else nullcontext() as pool:
        steps = stream(worker, _plan(worker, todo, states, round_, seen))
        for name, part in groupby(steps, key=lambda pair: pair[0].network):
            with training.Saver(worker) as saver:
                about, state = network_named(job.recipe, name), states.pop(name)
                _Training(worker, about, round_, state, kept, spent, pool, saver).run(part)


def _plan(
    worker: Worker, networks: list[Network], states: dict[str, dict[str, Any] | None], round_: int, seen: int
) -> Iterator[SgdStep]:
    """This worker's steps of all networks, from where the first one was cut off."""
    job, size = worker.job, worker.job.recipe.segmentation.batch_size
    begins = {name: tuple(state["position"]) if state else (0, 0) for name, state in states.items()}
    for network in networks:
        own = members(worker.photos, network)
        begin = begins[network.name]
        for epoch in range(epochs(job.recipe, network)):
            order = training.epoch_order(own, np.random.default_rng([job.recipe.seed, epoch]))
            last = (len(order) - 1) // size
            for index, (mine, count) in enumerate(training.batches(worker, order, size)):
                if (epoch, index) >= begin:
                    shards, ids = zip(*mine, strict=True) if mine else ((), ())
                    yield SgdStep(network.name, round_, epoch, index, shards, ids, count, index == last, seen)
                seen += count


class _Training:
    """The training of one network in one round."""

    def __init__(
        self,
        worker: Worker,
        network: Network,
        round_: int,
        state: dict[str, Any] | None,
        kept: KeptFeatures,
        spent: dict[str, float],
        pool: ThreadPoolExecutor | None,
        saver: training.Saver,
    ) -> None:
        job, settings = worker.job, worker.job.recipe.segmentation
        self._worker, self._about, self._round, self._spent, self._pool = worker, network, round_, spent, pool
        self._place, self._saver = (folder(round_), network.name), saver
        backbone = restore(job.run, hcp.FOLDER, WEIGHTS) if settings.weights is None else None
        start = None
        if round_ == 0 and begins_with_start(job.recipe, network):
            start = restore(job.run, folder(0), START.name, WEIGHTS)
        self._network, fresh = build(job.recipe, len(job.classes), backbone, start)
        if (table := segmenters_read(job.recipe)) and self._network.reduce is not None:
            self._network.reduce.load_state_dict(read_projection(job, table))
        self._network.to(worker.device).train()
        groups = parameter_groups(self._network, learning_rate(job.recipe, network), fresh, settings.weight_decay)
        self._optimizer = torch.optim.SGD(groups, momentum=settings.momentum)
        self._rates = [group["lr"] for group in groups]
        if job.recipe.runtime.compile:
            leave_uncompiled(self._network)
            self._network.backbone.compile()
            self._network.head.compile()
        weights = balance.weights(job)
        self._objective = training.shared(worker, SegmentationObjective(self._network, network, round_, kept, weights))
        self._before = read_log(job, network, round_)
        self._log: list[dict[str, float]] = []
        self._losses: list[float] = []
        self._last_epoch = epochs(job.recipe, network) - 1
        self._waited, self._worked = 0.0, 0.0
        if state:
            training.take(self._network, state["network"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._log, self._losses = state["log"], state["losses"]

    def run(self, steps: Iterator[tuple[SgdStep, list[Batch]]]) -> None:
        """Train all steps, and keep what is there after every epoch and whenever the saver says."""
        asked = time.monotonic()
        for step, batches in steps:
            self._step(step, batches, time.monotonic() - asked)
            if step.ends_epoch:
                self._end_epoch(step)
            if step.ends_epoch or self._saver.is_due():
                self._keep(step)
            asked = time.monotonic()

    def _step(self, step: SgdStep, batches: list[Batch], waited: float) -> None:
        arrived = time.monotonic()
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = learning_rate_at(step.epoch, rate, self._worker.job.recipe.segmentation.decay_every)
        shown = [self._shown(step, batch) for batch in batches]
        if self._pool:
            loss = training.step_by_photo(self._objective, shown, self._optimizer, self._pool)
        else:
            loss = training.step(self._worker, self._objective, *shown[0], self._optimizer)
        self._losses.append(loss)
        worked = time.monotonic() - arrived
        self._waited, self._worked = self._waited + waited, self._worked + worked
        self._spent["busy"] += worked
        self._spent["waited"] += waited
        note = f"{step.network} epoch {step.epoch + 1} of {self._last_epoch + 1}, loss {self._losses[-1]:.3f}"
        note = f"{note}, round {self._round}" if self._round else note
        self._worker.tell(step.seen + step.size, note, **self._spent)

    def _shown(self, step: SgdStep, batch: Batch) -> tuple[Shown | None, int]:
        """What the objective takes, and over how many photos or cells its loss is the mean."""
        if not batch.numbers:
            return None, 0
        dropout = [mixed(self._worker.job.recipe.seed, number, step.epoch) for number in batch.numbers]
        return Shown(batch, dropout), counted(target_kind(self._about, self._round), batch.targets)

    def _end_epoch(self, step: SgdStep) -> None:
        seconds = self._waited + self._worked
        entry = {"round": self._round, "epoch": step.epoch, "loss": float(np.mean(self._losses))}
        self._log.append({**entry, "seconds": seconds, "waited": self._waited / seconds})
        self._waited, self._worked, self._losses = 0.0, 0.0, []
        log = [*self._before, *self._log]
        training.tensorboard(self._worker, step.network, [("loss", entry["loss"]) for entry in log])
        if step.epoch == self._last_epoch and self._worker.rank == 0:
            run = self._worker.job.run
            run.write_json(self._log, *self._place, "log.json")
            weights = {key: tensor.cpu() for key, tensor in self._network.state_dict().items()}
            training.save(self._worker, weights, *self._place, WEIGHTS)
            self._saver.wait()
            run.delete(*self._place, "state.pt")
        # All workers wait here: what was kept is there for the next network.
        self._worker.report({"network": step.network, **self._log[-1]})

    def _keep(self, step: SgdStep) -> None:
        position = (step.epoch + 1, 0) if step.ends_epoch else (step.epoch, step.index + 1)
        if position[0] <= self._last_epoch:
            state = {
                "network": training.learned(self._network),
                "optimizer": self._optimizer.state_dict(),
                "log": self._log,
                "losses": self._losses,
                "position": position,
            }
            self._saver.save(state, *self._place, "state.pt")


class Shown(NamedTuple):
    """What a network is shown in a step."""

    batch: Batch
    dropout: list[int]  # a number for each photo


def counted(kind: str, targets: torch.Tensor) -> int:
    """Over how many photos or cells a batch's loss is the mean.

    Cells that lie outside a photo do not count, so batches of equally many photos can differ in cells.
    """
    if kind == "labels":
        return len(targets)
    if kind == "maps":
        return int((targets.sum(dim=1) > 0).sum())
    return int((targets[:, 0].long() != IGNORE).sum())


class SegmentationObjective(nn.Module):
    """The loss of a batch, by what a network learns from: a module, so that workers can share its gradients."""

    def __init__(
        self,
        network: SegmentationNetwork,
        about: Network,
        round_: int,
        kept: KeptFeatures,
        weights: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self._weights = weights
        self.network, self._kind, self._kept = network, target_kind(about, round_), kept
        self._objective = OBJECTIVES.get(about.objective) if self._kind == "labels" else None

    def forward(self, shown: Shown | None) -> torch.Tensor:
        """Mean loss over photos or cells, a scalar; 0 without photos."""
        if shown is None:
            return training.nothing(self)
        targets = shown.batch.targets
        if shown.batch.maps is not None:
            logits = self._of_stored(shown.batch.maps, shown.dropout, targets.device)
        else:
            number_photos(self.network, shown.dropout)
            logits = self.network.head(self._kept.features(self.network, shown.batch)).float()
        if self._kind == "labels":
            losses = [self._of_labels(*pair) for pair in zip(logits, targets, strict=True)]
            return torch.stack(losses).mean()
        if self._kind == "maps":
            return soft_cross_entropy(logits, targets)
        weights = None if self._weights is None else self._weights.to(logits.device)
        return hard_cross_entropy(logits, targets[:, 0].long(), weights)

    def _of_stored(
        self, maps: Sequence[dict[str, torch.Tensor]], dropout: Sequence[int], device: torch.device
    ) -> torch.Tensor:
        """Logits (b, C, h, w) of stored features; photos of one size pass together, and 0 lies around smaller ones."""
        sizes: dict[torch.Size, list[int]] = {}
        for place, levels in enumerate(maps):
            sizes.setdefault(levels[self.network.levels[0]].shape, []).append(place)
        found: dict[int, torch.Tensor] = {}
        for own in sizes.values():
            number_photos(self.network, [dropout[place] for place in own])
            shown = {
                level: torch.stack([maps[place][level] for place in own]).to(device).float()
                for level in self.network.levels
            }
            found |= zip(own, self.network.head(shown).float(), strict=True)
        return together([found[place] for place in range(len(maps))])

    def _of_labels(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The objective's loss of one photo: of the cells inside the photo, and of the channels that it has."""
        assert self._objective is not None
        inside = target[0] > 0
        rows, columns = int(inside.any(dim=1).sum()), int(inside.any(dim=0).sum())
        return self._objective(logits[None, :, :rows, :columns], target.flatten(1).any(dim=1)[None])


class KeptFeatures:
    """Feature maps of crops that a frozen backbone has seen: a photo within the crop has two, itself and its mirror."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[str, torch.Tensor]] = {}
        self._bytes = 0

    def features(self, network: SegmentationNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """`network.features` of the photos; of a backbone that trains, always anew."""
        assert batch.photos is not None
        if any(parameter.requires_grad for parameter in network.backbone.parameters()):
            return network.features(normalise(batch.photos, network.mean, network.std))
        new = {number: place for place, number in enumerate(batch.numbers) if number not in self._kept}
        found = {number: self._kept[number] for number in batch.numbers if number in self._kept}
        if new:
            with torch.no_grad():
                photos = batch.photos[list(new.values())]
                levels = network.features(normalise(photos, network.mean, network.std))
            for place, number in enumerate(new):
                found[number] = {level: maps[place].half() for level, maps in levels.items()}
                if self._bytes < KEPT_BYTES:
                    self._kept[number] = found[number]
                    self._bytes += sum(maps.nbytes for maps in found[number].values())
        levels = found[batch.numbers[0]]
        return {level: torch.stack([found[n][level] for n in batch.numbers]).float() for level in levels}


def _check(recipe: Recipe, listing: Listing) -> list[Finding]:
    settings = recipe.segmentation
    problems = hcp.backbone_problems("segmentation", settings.backbone, settings.weights, settings.freeze)
    if problems:
        return _refusals(problems)
    try:
        variant, weights = BACKBONES.get(settings.backbone), settings.weights or "hcp"
        begin = partial(build, recipe, 1, None)
        found = weights_finding(settings.head, weights, begin, variant.weights, variant.has_fc)
    except RecipeError as error:
        return [Finding("segmentation", False, str(error), error)]
    return [found, *_refusals([NO_PHOTO.format(name) for name in _without_photos(recipe, listing)])]


def _refusals(problems: Sequence[str]) -> list[Finding]:
    return [Finding("segmentation", False, problem, RecipeError(problem)) for problem in problems]


def _without_photos(recipe: Recipe, listing: Listing) -> list[str]:
    """The networks without a photo to learn from, where others have one, as far as the listing says."""
    suits: dict[str, Callable[[Photo], bool]] = {
        "all": lambda photo: True,
        "single": lambda photo: len(photo.labels) == 1,
        "masked": lambda photo: bool(photo.mask_uri),
    }
    wanted = {"all", *(network.photos for network in of_round(recipe, 0))}
    for photo in listing.photos:
        if photo.split == "train" and not photo.error:
            wanted -= {kind for kind in wanted if suits[kind](photo)}
        if not wanted:
            break
    lacking = [network.name for network in of_round(recipe, 0) if network.photos in wanted]
    return [] if "all" in wanted else lacking


@cache
def stage(round_: int) -> Stage:
    """The stage of a round, counted from 0."""
    first = round_ == 0
    return Stage(
        name=f"train_segmenter-{round_}" if round_ else "train_segmenter",
        reads=("images", "proposals", "supervision", hcp.FOLDER, *STORED)
        if first
        else ("images", own_labels(round_).folder, hcp.FOLDER, *STORED),
        writes=folder(round_),
        run=partial(_run, round_),
        settings=lambda recipe: ["segmentation"] if first else [],
        workers=lambda recipe: "trainers",
        batch_size=lambda recipe: recipe.segmentation.batch_size,
        check=_check if first else lambda recipe, listing: [],
        cautions=lambda recipe: hcp.cautions("segmentation", recipe.segmentation.freeze) if first else [],
        again=stage,
    )


STAGE = stage(0)
