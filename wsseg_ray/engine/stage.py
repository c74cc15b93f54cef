"""The contract of a stage, and what every stage is given. Imports neither Ray nor torch.

A stage is one object that says everything about itself; the pipeline, `doctor`, `plan`, `status`, the metrics and the
report go over the stages of a recipe and name none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol

import numpy as np
import yaml

from wsseg_ray.datasets import Listing
from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import Recipe, validate
from wsseg_ray.registry import look_in
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import R, Row, Table

if TYPE_CHECKING:
    import torch

    from wsseg_ray.engine.resources import Needs
    from wsseg_ray.report import Strip

Workers = Literal["tasks", "actors", "trainers"]
Split = Literal["train", "val", "all"]


@dataclass(frozen=True)
class Job:
    """A run in progress: where it is kept, its recipe, its classes, and the value of each class in mask files.

    The listing's photos stay on the driver; stages that need photos read the tables.

    Arguments:
        code: the folders in which the user's own variants are looked for.
        replaced: tables in whose place another one is read: the folder of each by the folder of the replaced one.
    """

    run: RunDirectory
    recipe: Recipe
    listing: Listing = field(repr=False)
    code: list[str] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        return self.listing.classes

    def table(self, table: Table[R]) -> Table[R]:
        """The table to read: itself, or the one that a stage of the user's own puts in its place."""
        return Table(self.replaced.get(table.folder, table.folder), table.row)

    def shards(self, table: Table[Any], split: str = "") -> list[str]:
        """The shards of the table to read: all, or those of the split `train` or `val`."""
        return self.run.shards(self.table(table).folder, split)

    def __getstate__(self) -> dict[str, Any]:
        # Every task is sent the job; a listing of a million photos must not travel with it.
        return {**self.__dict__, "listing": Listing(self.listing.classes, self.listing.mask_values, [])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        look_in(*self.code)


def open_run(run_dir: str | RunDirectory) -> Job:
    """A run that exists, to read from. Its listing holds no photos.

    Raises RecipeError where the folder is no run, or one of an older version.
    """
    place = (run_dir if isinstance(run_dir, RunDirectory) else RunDirectory.at(run_dir)).now()
    about = place.read_json("run.json")
    if about is None or not place.exists("recipe.yaml"):
        raise RecipeError(f"{run_dir} is no run: it holds no recipe.yaml and run.json")
    if "results" not in about:
        raise RecipeError(f"{run_dir} was made by an older version of wsseg_ray: run its recipe again")
    look_in(*(folder for folder in about["code"] if Path(folder).is_dir()))
    recipe = validate(yaml.safe_load(place.read_bytes("recipe.yaml")))
    listing = Listing(about["classes"], about["mask_values"], photos=[])
    return Job(place, recipe, listing, about["code"], about["replaced"])


def photo_number(image_id: str) -> int:
    """A number of 56 bits that stands for a photo: the same on every machine, in every order."""
    return int.from_bytes(blake2b(image_id.encode(), digest_size=7).digest(), "big")


@dataclass(frozen=True)
class Finding:
    """One thing that a stage needs, and whether it is there.

    Arguments:
        name: what was looked for, in a word.
        good: whether the run can do with it.
        text: what was found, or what is missing and how to get it.
        problem: what stops a run before any work; None where `good` is false for `doctor` alone.
        note: what a person should be told when a run begins, or "".
    """

    name: str
    good: bool
    text: str
    problem: Exception | None = None
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One step of the work on photos.

    Arguments:
        kernel: `(job, row) -> row`, in a task; or, of actors, `kernel(job)` makes what is then called with each row.
        row: the class of the rows that it returns.
        actor: whether the step needs an actor, which holds a network. On a CPU it is called on several threads at
            once, with one thread of torch each.
    """

    kernel: Any
    row: type[Row]
    actor: bool = False


@dataclass(frozen=True)
class Work(Generic[R]):
    """What a stage does with each photo, shard by shard.

    Arguments:
        table: what is written.
        read: `(job, shard) -> rows`, in a task.
        steps: one after the other. At most one is an actor's; the steps around it run in tasks.
    """

    table: Table[R]
    read: Callable[[Job, str], Sequence[Row]]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Arguments:
        name: as in `--until` and `runtime.stages`.
        reads: folders of the tables and networks that it reads. The shards of the first one are gone through.
        writes: the folder in which its results lie, each in a folder with its fingerprint.
        run: `run(job, runner)` does what is not done yet, and returns how many photos it did: 0 where nothing was left.
            None: `work` on the photos of the first table that it reads.
        settings: the recipe's keys that its result depends on and no earlier stage's does: "section" or "section.key".
            A key belongs to the stage that names it most precisely.
        also: more of what its result depends on, as plain data.
        covers: sections of which `also` has all that matters: their keys need not be named in `settings`.
        table: the table that it writes; None where it trains.
        work: what it does with each photo; None where it trains.
        needed: whether a recipe has the stage.
        workers: what it runs on, by the recipe.
        may_have_network: whether some recipes make it run on actors, though this one does not.
        split: whose photos it works on.
        batch_size: photos of a training step.
        pairs: whether every photo meets every other one, so that its time grows with the square of their number.
        check: what it needs, looked for before any work.
        metrics: its part of `metrics.json`, from what it wrote.
        strips: its pictures in the report.
        cautions: what `plan` cannot know.
        after: of a stage of the user's own: the stage that it follows.
        replaces: of a stage of the user's own: the folder in whose place later stages read what it writes.
        again: of stages that are repeated in `segmentation.rounds`: the stage of a round.
        first_round: the first round that has the stage.
    """

    name: str
    reads: tuple[str, ...]
    writes: str
    run: Callable[[Job, Runner], int] | None = None
    settings: Callable[[Recipe], Sequence[str]] = lambda recipe: ()
    also: Callable[[Job], Any] = lambda job: None
    covers: tuple[str, ...] = ()
    table: Table[Any] | None = None
    work: Callable[[Job], Work[Any]] | None = None
    needed: Callable[[Recipe], bool] = lambda recipe: True
    workers: Callable[[Recipe], Workers] = lambda recipe: "tasks"
    may_have_network: bool = False
    split: Split = "train"
    batch_size: Callable[[Recipe], int] = lambda recipe: 1
    pairs: Callable[[Recipe], bool] = lambda recipe: False
    check: Callable[[Recipe, Listing], list[Finding]] = lambda recipe, listing: []
    metrics: Callable[[Job], dict[str, Any]] = lambda job: {}
    strips: Callable[[Job], list[Strip]] = lambda job: []
    cautions: Callable[[Recipe], list[str]] = lambda recipe: []
    after: str = ""
    replaces: str = ""
    again: Callable[[int], Stage] | None = None
    first_round: int = 0

    @property
    def resources(self) -> str:
        """The key of `runtime.stages` that says what it asks for: rounds share one."""
        return self.name.partition("-")[0]

    def has_network(self, recipe: Recipe) -> bool:
        """Whether it runs on actors or trainers."""
        return self.workers(recipe) != "tasks"

    def do(self, job: Job, runner: Runner) -> int:
        """Do what is not done yet; returns how many photos were done: 0 where nothing was left."""
        if self.run is not None:
            return self.run(job, runner)
        assert self.work is not None
        source = job.replaced.get(self.reads[0], self.reads[0])
        shards = job.run.shards(source, "" if self.split == "all" else self.split)
        return runner.map_shards(job, self, self.work(job), shards)


class Runner(Protocol):
    """How the work of stages is run: on Ray, or in one process."""

    def check(self, recipe: Recipe, stages: Sequence[Stage]) -> None:
        """Raise RecipeError where a stage can never get what it asks for."""
        ...

    def ask_for(self, job: Job, stage: Stage) -> None:
        """Ask for the machines that a stage needs, before its work waits for them."""
        ...

    def needs(self, job: Job, stage: Stage) -> Needs:
        """What the stage asks for and gets."""
        ...

    def map_shards(self, job: Job, stage: Stage, work: Work[Any], shards: Sequence[str]) -> int:
        """Do the work for the photos of the shards that the table lacks, and write one file per shard.

        Returns the number of photos done now. Raises RuntimeError where all photos fail, or storage fails for good.
        """
        ...

    def map_reduce(
        self, job: Job, name: str, kernel: Callable[[Job, str], Any], shards: Sequence[str]
    ) -> Iterator[Any]:
        """`kernel(job, shard)` of each shard, in any order: arrays by name, which the caller adds up."""
        ...

    def call(self, job: Job, stage: Stage, function: Callable[[Job], None]) -> None:
        """Call a function once, on a machine that has what the stage's actors have."""
        ...

    def fit(self, job: Job, stage: Stage, loop: Callable[[Worker], None], total: int, photos: Any) -> None:
        """Run a training loop, on as many workers as the stage asks for, and show how far it is.

        Arguments:
            total: photos that the loop will see, over all epochs.
            photos: plain data that each worker gets as `worker.photos`.
        """
        ...


class Worker(Protocol):
    """A worker of a training, as its loop sees it."""

    job: Job
    rank: int
    world: int
    device: torch.device
    threads: int
    photos: Any

    def alone(self) -> Worker:
        """This worker as the only one of a training: the others have trainings of their own meanwhile."""
        ...

    def tell(self, seen: int, note: str, busy: float, waited: float) -> None:
        """Say how far the training is; of workers that train together, worker 0 alone is heard.

        Arguments:
            seen: photos, over all epochs.
            note: what a person wants to know now.
            busy, waited: seconds that this process computed and waited for photos, since it began.
        """
        ...

    def report(self, metrics: dict[str, Any]) -> None:
        """Say that an epoch is over. All workers wait here for each other."""
        ...

    def is_preempted(self) -> bool:
        """Whether a machine of this training is about to be taken away, as its provider said."""
        ...

    def stream(
        self, steps: Iterator[dict[str, Any]], read: Callable[[dict[str, np.ndarray]], Iterator[dict[str, np.ndarray]]]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """What `read` makes of each step, in order, on the worker's device, read ahead where that is possible.

        Arguments:
            steps: plain data.
            read: `(columns of some steps) -> arrays of each step`, each array with a first axis of one.
        """
        ...


def as_seen_by(stage: Stage, job: Job, stages: Sequence[Stage]) -> Job:
    """The job as a stage sees it: with the tables that earlier stages of the user's own put in place of others."""
    return with_replacements(job, stages[: [one.name for one in stages].index(stage.name)])


def with_replacements(job: Job, stages: Sequence[Stage]) -> Job:
    """The job, with the tables that stages of the user's own put in place of others."""
    return replace(job, replaced={stage.replaces: stage.writes for stage in stages if stage.replaces})
