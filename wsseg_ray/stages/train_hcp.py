"""Stage `train_hcp`: Hypothesis-CNN-Pooling: image-fine-tuning, then hypothesis-fine-tuning (Sec. 3.1).

Beyond the paper, rounds in which regions learn from the maps that the network of the round before gives (`mining`).
Where no conv layer is trained, what is pooled of a photo does not change: it is computed once and kept.
"""

from __future__ import annotations

import copy
import time
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.backbones.precision import mixed_precision
from wsseg_ray.datasets import Listing
from wsseg_ray.engine import training
from wsseg_ray.engine.checkpoints import WEIGHTS, restore, weights_finding
from wsseg_ray.engine.schedule import learning_rate_at
from wsseg_ray.engine.stage import Finding, Job, Runner, Stage, Worker, photo_number
from wsseg_ray.errors import RecipeError
from wsseg_ray.hcp.dropout import mixed, number_photos
from wsseg_ray.hcp.loss import Loss, hypothesis_max, label_targets, region_loss
from wsseg_ray.hcp.mining import region_targets, sample_regions
from wsseg_ray.hcp.network import HypothesisNetwork, parameter_groups
from wsseg_ray.hcp.scoring import choose_candidates, pool_photos, pool_sources, score_proposals, score_source
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.recipe import HcpSection, Recipe
from wsseg_ray.stages.hcp import FOLDER, backbone_problems, build, cautions, colours_of, loss_of, read_log
from wsseg_ray.stages.rows import photo_of, regions_of
from wsseg_ray.stages.stored import Kept, hcp_reads, map_of, read_projection
from wsseg_ray.supervision.maps import localization_maps
from wsseg_ray.tables import FEATURES, IMAGES, PROPOSALS

KEPT_BYTES = 2**30  # of pooled features, and of regions with their targets, per worker


class Entry(NamedTuple):
    """A photo that trains: what the network reads of it, all its proposals, and those that train now."""

    photo: np.ndarray | None  # (H, W, 3) uint8, where the backbone sees it now
    stored: torch.Tensor | None  # (C, h, w), what the backbone saw, where that is stored
    regions: RegionProposals
    chosen: np.ndarray


class Phase(NamedTuple):
    """A part of the training: its name, its epochs, and the first learning rate of the last layer."""

    name: str
    epochs: int
    last_rate: float


def _run(job: Job, runner: Runner) -> int:
    """Train the network into `hcp/`, unless it is there; returns the photos seen over all epochs."""
    if job.run.exists(FOLDER, "log.json"):  # what a training that is done writes last
        return 0
    photos = training.index(job, PROPOSALS, hcp_reads(job.recipe))
    total = len(photos) * sum(phase.epochs for phase in phases(job.recipe.hcp))
    runner.fit(job, STAGE, _loop, total, photos)
    return total


def phases(settings: HcpSection) -> list[Phase]:
    """Image-fine-tuning, hypothesis-fine-tuning and the region rounds."""
    last_rate = settings.hypothesis_last_learning_rate
    return [
        Phase("image", settings.image_epochs, settings.image_last_learning_rate),
        Phase("hypothesis", settings.hypothesis_epochs, last_rate),
        *(Phase(f"region-{number}", settings.region_epochs, last_rate) for number in range(settings.region_rounds)),
    ]


def _loop(worker: Worker) -> None:
    job = worker.job
    network, fresh = build(job.recipe, len(job.classes))
    if network.reduce is not None:
        network.reduce.load_state_dict(read_projection(job, FEATURES))
    network.to(worker.device)
    state = training.resumed(worker, FOLDER, "state.pt")
    with training.Saver(worker) as saver:
        run = _Training(worker, network, fresh, worker.photos, saver)
        if state:
            training.take(network, state["network"])
            run.log = state["log"]
        for phase in phases(job.recipe.hcp):
            run.phase(phase, state if state and state["step"] == phase.name else None)
    if worker.rank == 0:
        training.save(worker, network.cpu().state_dict(), FOLDER, WEIGHTS)
        job.run.write_json({"log": run.log}, FOLDER, "log.json")
        for name in ("state", *(phase.name for phase in phases(job.recipe.hcp))):
            job.run.delete(FOLDER, f"{name}.pt")  # the state and the teachers are no longer needed


class _Training:
    """The training so far: the network, the loss of each epoch, and the photos seen."""

    def __init__(
        self,
        worker: Worker,
        network: HypothesisNetwork,
        fresh: list[str],
        photos: training.Index,
        saver: training.Saver,
    ) -> None:
        self._worker, self._network, self._fresh, self._photos, self._saver = worker, network, fresh, photos, saver
        self._feed = Feed(worker.job, network, worker.device)
        self._objective = training.shared(worker, HcpObjective(network, loss_of(worker.job.recipe), worker.device))
        self._seen, self._began = 0, time.monotonic()
        self.log: list[dict[str, Any]] = []

    def phase(self, phase: Phase, state: dict[str, Any] | None) -> None:
        """Train the epochs of a phase that are not done yet.

        Arguments:
            state: of a training that was cut off in this phase.
        """
        settings = self._worker.job.recipe.hcp
        done = sum(entry["step"] == phase.name for entry in self.log)
        groups = parameter_groups(self._network, settings.learning_rate, phase.last_rate, self._fresh)
        optimizer = torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
        losses: list[float] = []  # of the steps of an epoch that was cut off
        if state:
            optimizer.load_state_dict(state["optimizer"])
            losses = state["losses"]
        self._seen += done * len(self._photos)
        if done < phase.epochs:
            self._feed.begin(phase.name, self._teacher(phase.name) if phase.name.startswith("region") else None)
        for epoch in range(done, phase.epochs):
            for group, base in zip(optimizer.param_groups, (settings.learning_rate, phase.last_rate), strict=True):
                group["lr"] = learning_rate_at(epoch, base, settings.decay_every)
            losses = self._epoch(phase, epoch, optimizer, losses)
            self.log.append({"step": phase.name, "epoch": epoch, "loss": float(np.mean(losses))})
            losses = []
            self._keep(phase, optimizer, losses)
            training.tensorboard(self._worker, "HCP", [(f"loss/{entry['step']}", entry["loss"]) for entry in self.log])
            self._worker.report(self.log[-1])

    def _epoch(self, phase: Phase, epoch: int, optimizer: torch.optim.Optimizer, losses: list[float]) -> list[float]:
        """The loss of each step. Arguments: `losses` of the steps that were done before the training was cut off."""
        worker, settings = self._worker, self._worker.job.recipe.hcp
        number, done = len(self.log), len(losses)
        order = training.epoch_order(self._photos, np.random.default_rng([worker.job.recipe.seed, number]))
        self._network.train()
        for index, (mine, size) in enumerate(training.batches(worker, order, settings.batch_size)):
            if index < done:
                self._seen += size
                continue
            with mixed_precision(worker.device):
                batch = self._feed.batch(mine, number) if mine else None
            losses.append(training.step(worker, self._objective, batch, len(mine), optimizer))
            self._seen += size
            note = f"{phase.name} epoch {epoch + 1} of {phase.epochs}, loss {losses[-1]:.3f}"
            busy = time.monotonic() - self._began - self._feed.waited
            worker.tell(self._seen, note, busy, self._feed.waited)
            if self._saver.is_due():
                self._keep(phase, optimizer, losses)
        return losses

    def _keep(self, phase: Phase, optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
        """Keep all that the training needs to go on: after each epoch, and whenever the saver says."""
        state = {"network": training.learned(self._network), "optimizer": optimizer.state_dict(), "losses": losses}
        self._saver.save({**state, "log": self.log, "step": phase.name}, FOLDER, "state.pt")

    def _teacher(self, phase: str) -> HypothesisNetwork:
        """The network as it was when the phase began. It is kept, so that a phase that was cut off goes on with it."""
        kept = restore(self._worker.job.run, FOLDER, f"{phase}.pt")
        if kept is None:
            training.save(self._worker, training.learned(self._network), FOLDER, f"{phase}.pt")
        teacher = copy.deepcopy(self._network)
        training.take(teacher, kept or {})
        return teacher.eval()


class HcpBatch(NamedTuple):
    """The photos of a step, as the objective takes them."""

    pooled: list[torch.Tensor] | None  # (n_i, ...) of each photo, where the backbone is frozen
    photos: list[torch.Tensor]  # (3, H, W) normalised, of each photo, where it is trained
    regions: list[RegionProposals] | None  # of each photo; None: the whole photo is the one hypothesis
    numbers: list[int]  # for dropout
    labels: torch.Tensor  # (B, C) bool
    targets: list[torch.Tensor] | None  # (n_i, C) of each photo, in the region rounds


class HcpObjective(nn.Module):
    """The loss of a batch: a module, so that workers can share its gradients."""

    def __init__(self, network: HypothesisNetwork, loss: Loss, device: torch.device) -> None:
        super().__init__()
        self.network, self._loss, self._device = network, loss, device

    def forward(self, batch: HcpBatch | None) -> torch.Tensor:
        """Mean loss over photos, a scalar; 0 without a batch."""
        if batch is None:
            return training.nothing(self)
        pooled = batch.pooled
        if pooled is None:
            pooled = pool_photos(self.network, batch.photos, batch.regions)
        counts = [len(part) for part in pooled]
        number_photos(self.network, batch.numbers, counts)
        logits = self.network.classify(self.network.embed(torch.cat(pooled).to(self._device).float())).split(counts)
        if batch.targets is not None:
            return torch.stack([region_loss(*pair) for pair in zip(logits, batch.targets, strict=True)]).mean()
        best = torch.stack([hypothesis_max(part[None])[0] for part in logits])
        return self._loss.compare(best, label_targets(batch.labels).to(self._device))


def _mirrored(entry: Entry) -> Entry:
    assert entry.photo is not None
    regions = RegionProposals(entry.regions.superpixels[:, ::-1], entry.regions.membership)
    return entry._replace(photo=np.ascontiguousarray(entry.photo[:, ::-1]), regions=regions)


class Mined(NamedTuple):
    """The regions (n,) that a photo gives in a round, and their targets (n, C)."""

    rows: np.ndarray
    targets: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.targets.nbytes


class Feed:
    """Photos as batches. A photo that an earlier stage could read and that cannot be read now is an error.

    Where the backbone is frozen, a photo's regions are pooled once in a phase, from stored features or from the photo.
    """

    def __init__(self, job: Job, network: HypothesisNetwork, device: torch.device) -> None:
        self._job, self._network, self._device = job, network, device
        self._colours, self._loss = colours_of(job.recipe.hcp.backbone), loss_of(job.recipe)
        self._features = hcp_reads(job.recipe)
        self.waited = 0.0  # seconds, for photos to be read and decoded
        self._shard = lru_cache(maxsize=2 * training.HANDS)(self._load)
        self._labels_of = cache(self._read_labels)
        self._frozen = not any(parameter.requires_grad for parameter in network.backbone.parameters())

    def begin(self, phase: str, teacher: HypothesisNetwork | None) -> None:
        """What the next batches are about: `image`, `hypothesis`, or a region round with its teacher."""
        self._phase, self._teacher = phase, teacher
        self._pooled = Kept[torch.Tensor](KEPT_BYTES)
        self._mined = Kept[Mined](KEPT_BYTES)

    def batch(self, photos: list[tuple[str, str]], epoch: int) -> HcpBatch:
        """The batch of (shard, image_id) pairs.

        Where the backbone is trained a photo is mirrored every other time, as in the SGD procedure of [17].
        """
        seed, targets = self._job.recipe.seed, None
        if self._teacher is not None:
            mined = [self._mine(shard, image_id).targets for shard, image_id in photos]
            targets = [torch.from_numpy(own).to(self._device) for own in mined]
        labels = np.zeros((len(photos), len(self._job.classes)), bool)
        for own, (shard, image_id) in zip(labels, photos, strict=True):
            own[self._labels_of(shard)[image_id]] = True
        numbers = [mixed(seed, photo_number(image_id), epoch) for _, image_id in photos]
        if self._frozen:
            pooled = [self._pooled.get(image_id, partial(self._pool, shard, image_id)) for shard, image_id in photos]
            return HcpBatch(pooled, [], None, numbers, torch.from_numpy(labels), targets)
        mirror = [np.random.default_rng([seed, photo_number(image_id), epoch]).integers(2) for _, image_id in photos]
        entries = [self._entry(shard, image_id) for shard, image_id in photos]
        shown = [_mirrored(row) if m else row for m, row in zip(mirror, entries, strict=True)]
        return HcpBatch(
            None, [self._normalised(e) for e in shown], self._shown(shown), numbers, torch.from_numpy(labels), targets
        )

    def _entry(self, shard: str, image_id: str) -> Entry:
        """A photo, with the regions that train in this phase."""
        asked = time.monotonic()
        entry = self._shard(shard)[image_id]
        self.waited += time.monotonic() - asked
        return entry if self._teacher is None else entry._replace(chosen=self._mine(shard, image_id).rows)

    def _mine(self, shard: str, image_id: str) -> Mined:
        """What this photo gives in this round, the same in every epoch."""

        def mine() -> Mined:
            entry, labels = self._shard(shard)[image_id], self._labels_of(shard)[image_id]
            targets = self._targets(entry, labels)
            rows = sample_regions(targets, np.random.default_rng([self._job.recipe.seed, photo_number(image_id)]))
            if len(rows) == 0:  # nothing is known: the photo teaches nothing, but a batch needs a row
                rows, targets = np.zeros(1, int), np.full_like(targets, -1)
            return Mined(rows, targets[rows])

        return self._mined.get(image_id, mine)

    def _targets(self, entry: Entry, labels: np.ndarray) -> np.ndarray:
        """The target (N, C) of every region, from the maps that the teacher gives."""
        assert self._teacher is not None
        hcp = self._job.recipe.hcp
        if entry.stored is None:
            found = score_proposals(self._teacher, self._normalised(entry), entry.regions, self._loss)
        else:
            found = score_source(self._teacher, entry.stored.to(self._device).float(), entry.regions, self._loss)
        chosen, _ = choose_candidates(found[0].T[labels], hcp.threshold, hcp.min_candidates)
        return region_targets(
            entry.regions, localization_maps(entry.regions, chosen), labels.tolist(), len(self._job.classes)
        )

    @torch.no_grad()
    def _pool(self, shard: str, image_id: str) -> torch.Tensor:
        """Pooled features of a photo's regions in this phase, half precision."""
        entry = self._entry(shard, image_id)
        if entry.stored is None:
            found = pool_photos(self._network, [self._normalised(entry)], self._shown([entry]))
        else:
            found = pool_sources(self._network, [entry.stored.to(self._device).float()], self._shown([entry]))
        return found[0].half().cpu()

    def _normalised(self, entry: Entry) -> torch.Tensor:
        assert entry.photo is not None
        return normalise(entry.photo, *self._colours)[0].to(self._device)

    def _shown(self, entries: list[Entry]) -> list[RegionProposals] | None:
        """Of each photo the chosen regions; None: the whole photo."""
        if self._phase == "image":
            return None
        return [RegionProposals(e.regions.superpixels, e.regions.membership[e.chosen]) for e in entries]

    def _load(self, shard: str) -> dict[str, Entry]:
        """Every photo of a shard, its proposals and hypotheses."""
        run, images = self._job.run, self._job.run.read_good(self._job.table(IMAGES), shard)
        stored = run.read_good(self._job.table(self._features), shard) if self._features else {}
        loaded = {}
        for image_id, row in run.read_good(self._job.table(PROPOSALS), shard).items():
            photo = seen = None
            if self._features and image_id in stored:  # else the backbone failed on it, and it does not train
                seen = map_of(stored[image_id])
            elif not self._features:
                photo = photo_of(self._job, images[image_id])
            loaded[image_id] = Entry(photo, seen, regions_of(row), row.hypotheses)
        return loaded

    def _read_labels(self, shard: str) -> dict[str, np.ndarray]:
        images = self._job.run.read_good(self._job.table(IMAGES), shard, ["labels"])
        return {image_id: row.labels for image_id, row in images.items()}


def _check(recipe: Recipe, listing: Listing) -> list[Finding]:
    settings = recipe.hcp
    problems = backbone_problems("hcp", settings.backbone, settings.weights, settings.freeze)
    if settings.region_rounds and not loss_of(recipe).apart:
        problems.append(
            f"hcp.region_rounds: a region may show no class, so the loss must judge each class by itself; set hcp.loss "
            f"to a loss such as binary_cross_entropy, not {settings.loss}"
        )
    if problems:
        return [Finding("hcp", False, problem, RecipeError(problem)) for problem in problems]
    variant = BACKBONES.get(settings.backbone)
    return [weights_finding("HCP", settings.weights, lambda: build(recipe, 1), variant.weights, variant.has_fc)]


STAGE = Stage(
    name="train_hcp",
    reads=("images", "proposals", "features"),
    writes=FOLDER,
    run=_run,
    settings=lambda recipe: [
        "seed",
        "hcp",
        *(["hcp.threshold", "hcp.min_candidates"] if recipe.hcp.region_rounds else []),
    ],
    workers=lambda recipe: "trainers",
    batch_size=lambda recipe: recipe.hcp.batch_size,
    check=_check,
    metrics=lambda job: {"hcp": {"log": read_log(job)}},
    cautions=lambda recipe: cautions("hcp", recipe.hcp.freeze),
)
