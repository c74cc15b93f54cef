"""The runner on Ray: shards stream through Ray Data, trainings run on Ray Train, the rest are remote functions.

A row of a Dataset is a photo, so the dashboard counts photos; a block is a shard, because one task must write the file
of a shard whole, and that file is the checkpoint. What travels between steps are Arrow columns of the row classes.
"""

from __future__ import annotations

import _thread
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
from ray.autoscaler.sdk import request_resources
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.context import get_train_context
from ray.util.metrics import Counter, Gauge

from wsseg_ray.console import say
from wsseg_ray.engine import resources, shards
from wsseg_ray.engine.meter import Meter
from wsseg_ray.engine.resources import FEED_CPUS, Needs, Node
from wsseg_ray.engine.stage import Job, Stage, Step, Work, Worker
from wsseg_ray.engine.trace import TRACED_SHARDS, TRACED_STEPS, Trace
from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import Recipe
from wsseg_ray.storage import StorageError, shown
from wsseg_ray.tables import Row, decode, encode, shard_size

PROGRESS = "progress.json"  # in a training's folder: how far worker 0 is
TELL_EVERY = 1.0  # seconds
REPORT_EVERY = 20.0  # seconds, to Ray Train, by a worker that is alone
MAX_FAILURES = 5  # machines that a training may lose; then the run stops, and goes on when it is run again
MAX_TASKS = 20_000  # of a step
SPAN = 8192  # training steps of one Dataset: bounds what a worker plans ahead
STEPS_A_TASK = 16  # training steps that a task reads: they share the shards that they need
PREFETCH = 4  # training steps that wait at the trainer's door

SECONDS = ("read", "busy", "waited", "write")  # that a shard's steps took
TAGS = ("run", "stage")
COUNTERS = {
    "rows": ("wsseg_rows", "Photos that a stage has done; of trainings: photos seen, over all epochs"),
    "failed": ("wsseg_failed_rows", "Photos that a stage could not process"),
    "task": ("wsseg_task_seconds", "Seconds that tasks worked: reading, decoding, kernels of the CPU, writing"),
    "busy": ("wsseg_busy_seconds", "Seconds that actors or trainers worked, by the clock; not how busy a GPU was"),
    "waited": ("wsseg_queue_wait_seconds", "Seconds that shards waited for actors, or that trainers waited for photos"),
}
GAUGES = {
    "seconds": ("wsseg_stage_seconds", "Seconds since the stage began"),
    "busy_share": ("wsseg_busy_share", "Share of the time that actors or trainers worked; not how busy a GPU was"),
    "progress": ("wsseg_progress", "Share of the stage's work that is done"),
}
ENVIRONMENT = {
    # How often Ray Train looks whether its workers are done; its two seconds make every training three longer.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A worker process that waits for a second is ended where all CPUs are taken, and an actor's next photos then wait
    # until another one has imported torch. `cluster.yaml` and `Dockerfile` say the same.
    "RAY_idle_worker_killing_time_threshold_ms": "120000",
}


@contextmanager
def ray_runner(log: Path) -> Iterator[RayRunner]:
    """Ray for the time of a run: the cluster that RAY_ADDRESS or the machine names, else one of our own.

    Arguments:
        log: where what Ray prints goes; it is told to the person who watches.
    """
    started = not ray.is_initialized()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if started:
        context = ray.init(log_to_driver=False)
        cpus, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
        say(f"Ray: {cpus} CPUs, {gpus} GPUs, dashboard {context.dashboard_url or 'off'}; its log is {log}")
    try:
        yield RayRunner()
    finally:
        with suppress(Exception):  # a cluster that is gone must not hide why the run ended
            request_resources(bundles=[])  # idle machines may go
        if started:
            ray.shutdown()


class RayRunner:
    """Runs the work of stages on Ray; implements `engine.stage.Runner`."""

    def check(self, recipe: Recipe, stages: Sequence[Stage]) -> None:
        """Raise RecipeError where the cluster can never give a stage what it asks for."""
        resources.check(recipe, stages, cluster(recipe))

    def needs(self, job: Job, stage: Stage) -> Needs:
        return resources.needs(job.recipe, stage, cluster(job.recipe), resources.largest_photo(job.run))

    def ask_for(self, job: Job, stage: Stage) -> None:
        """Ask the autoscaler for a stage's machines, so that they come, and stay, before work waits.

        Actors are asked for one by one, as their work grows; a training has all its work at once.
        """
        wanted = self.needs(job, stage)
        count = wanted.most or 1 if stage.workers(job.recipe) == "trainers" else wanted.least
        request_resources(bundles=[*[wanted.bundle()] * count, {"CPU": FEED_CPUS}])

    def map_shards(self, job: Job, stage: Stage, work: Work[Any], todo: Sequence[str]) -> int:
        done = set(job.run.shards(work.table.folder))
        missing = [shard for shard in todo if shard not in done]
        if not missing:
            return 0
        wanted = self.needs(job, stage)
        workers = wanted.most or 0 if stage.has_network(job.recipe) else 0
        tally = shards.Tally(job, stage.name, work.table)
        with (
            _whole_blocks(),
            _meter(job, stage, "shards", len(missing), workers) as meter,
            _told_plainly(job, stage.name),
            tally,
        ):
            results = _dataset(job, stage, work, missing, wanted)
            for block in results.iter_batches(batch_size=None, batch_format="pyarrow"):
                for shard, part in _parts(block):
                    rows, errors = sum(part.column("photo").to_pylist()), list(filter(None, _texts(part, "error")))
                    spent = {name: sum(part.column(name).to_pylist()) for name in SECONDS}
                    tally.add(shard, rows, errors)
                    meter.add(1, {"rows": rows, "failed": len(errors), **spent}, tally.note)
        tally.refuse_all_failed(resumed=bool(done))
        return tally.photos

    def map_reduce(self, job: Job, name: str, kernel: Callable[[Job, str], Any], todo: Sequence[str]) -> Iterator[Any]:
        dataset = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo))
        dataset.set_name(name)
        dataset.context.execution_no_progress_timeout_s = 60 * job.recipe.runtime.no_progress_minutes
        with _told_plainly(job, name):
            yield from dataset.map(_named(name, lambda item: kernel(job, item["shard"]))).iter_rows()

    def call(self, job: Job, stage: Stage, function: Callable[[Job], None]) -> None:
        wanted = self.needs(job, stage)
        with _told_plainly(job, stage.name):
            ray.get(ray.remote(**wanted.options())(_call).remote(job, wanted.threads, function))

    def fit(self, job: Job, stage: Stage, loop: Callable[[Worker], None], total: int, photos: Any) -> None:
        """See `engine.stage.Runner`. Raises RuntimeError where nothing is done for `runtime.no_progress_minutes`."""
        wanted = self.needs(job, stage)
        trainer = TorchTrainer(
            _train,
            # The photos are put into Ray's object store once.
            train_loop_config={
                "job": job,
                "stage": stage.name,
                "folder": stage.writes,
                "threads": wanted.threads,
                "photos": ray.put(photos),
                "loop": loop,
            },
            scaling_config=ray.train.ScalingConfig(
                # Ray's annotation forgets that it takes a range, too
                num_workers=wanted.least if wanted.least == wanted.most else (wanted.least, wanted.most),  # type: ignore[arg-type]
                use_gpu=wanted.gpus > 0,
                resources_per_worker=wanted.bundle(),
            ),
            run_config=ray.train.RunConfig(
                name=f"{stage.name}-{uuid.uuid4().hex[:8]}",
                storage_path=job.run.uri("logs", "train"),
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        workers = wanted.most or 1
        for rank in range(workers):
            job.run.delete(stage.writes, progress_file(rank))
        with _meter(job, stage, "photos", total, workers) as meter:
            watch = _Watch(job, stage, meter, workers)
            try:
                trainer.fit()
            except (KeyboardInterrupt, SystemExit):  # Ray Train answers an interrupt by the latter
                if watch.hung:
                    raise RuntimeError(
                        f"{stage.name}: nothing was done for {job.recipe.runtime.no_progress_minutes:g} minutes "
                        f"(runtime.no_progress_minutes) after {watch.seen} of {total} photos; the trainers wait for "
                        f"{wanted.least} workers of {wanted.bundle()} or for each other. Run again to go on."
                    ) from None
                raise
            except ray.train.TrainingFailedError as error:
                raise RuntimeError(f"{stage.name}: {root_cause(error)}") from error
            finally:
                watch.stop()
            meter.add(total - watch.seen, {"rows": total - watch.seen}, watch.note)


def cluster(recipe: Recipe) -> list[Node]:
    """The machines of this Ray: those that are there, or those that it may grow to where that is known and more.

    Ray does not tell what its autoscaler may add: see `resources.machines`.
    Raises RecipeError where there is no CPU, and none is known to come.
    """
    there = [resources.node(node["Resources"], 1) for node in ray.nodes() if node["Alive"]]
    nodes = max(there, resources.machines(recipe), key=lambda kinds: sum(node.cpus * node.count for node in kinds))
    nodes = [node for node in nodes if node.cpus and node.count]
    if not nodes:
        raise RecipeError(
            "no machine of this cluster has a CPU for work; if the cluster can add machines, say which it can add: "
            "--set 'runtime.cluster=[{cpus: 16, count: 8}, {cpus: 8, gpus: 1, count: 4}]'"
        )
    return nodes


def root_cause(error: BaseException) -> str:
    """What went wrong in a task or a worker, without the traces of what carried it here.

    Ray hands over the text of the first error alone: it is the last line before what it led to.
    """
    text = str(error).partition("\nThe above exception was")[0].strip()
    return text.rsplit("\n", 1)[-1].removeprefix(f"{StorageError.__module__}.{StorageError.__name__}: ")


# ---- photos through Ray Data


def _dataset(job: Job, stage: Stage, work: Work[Any], missing: list[str], wanted: Needs) -> ray.data.Dataset:
    """The Dataset of a stage: shards in, photos between the steps, one small row per photo out."""
    dataset = _input(missing, _shards_of_a_task(job, stage, work, len(missing)))
    row: type[Row] | None = None
    dataset.set_name(stage.name)
    dataset.context.execution_no_progress_timeout_s = 60 * job.recipe.runtime.no_progress_minutes
    last = work.steps[-1]
    alone = len(work.steps) == 1
    beside = _beside_actors(job, work, wanted)
    for place, step in enumerate(work.steps):
        ends = step is last and not step.actor
        # A batch is a block, that is, a shard. `map_batches` refuses that for actors with GPUs; this method does not.
        apply = dataset.map_batches_internal
        options: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
        if step.actor:
            pool = ActorPoolStrategy(
                min_size=min(wanted.least, len(missing)), max_size=min(wanted.most or 1, len(missing))
            )
            dataset = apply(
                type(stage.name, (_Actor,), {}),
                fn_constructor_args=(job, stage.name, step, row, wanted.threads),
                compute=pool,
                **options,
                **wanted.options(),
            )
        else:
            read = work.read if place == 0 else None
            at_once = 1 if alone else resources.task_threads(cluster(job.recipe))
            task = partial(_task, job, stage.name, work, step, row, read, ends, at_once)
            name = stage.name if alone else f"{stage.name}_{shards.step_name(step, ends)}"
            more = {"compute": TaskPoolStrategy(size=wanted.most), **wanted.options()} if alone else beside
            dataset = apply(_named(name, task), **options, **more)
        row = step.row
    if last.actor:
        write = partial(_task, job, stage.name, work, None, row, None, True, 1)
        dataset = dataset.map_batches(
            _named(f"{stage.name}_write", write),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            **beside,
        )
    return dataset


def _beside_actors(job: Job, work: Work[Any], wanted: Needs) -> dict[str, Any]:
    """Ray's options of tasks that work beside actors."""
    kinds = sum(not step.actor for step in work.steps) + work.steps[-1].actor  # after an actor, a task writes
    cpus = resources.task_cpus(wanted, kinds, cluster(job.recipe))
    return {"num_cpus": cpus, **({"memory": wanted.memory // kinds} if wanted.memory else {})}


def _shards_of_a_task(job: Job, stage: Stage, work: Work[Any], shards: int) -> int:
    """How many shards a task works on: one, unless the recipe says otherwise or there are more than MAX_TASKS.

    A task costs the driver 5 to 6 ms, and a CPU waits up to 0.2 s until Ray Data sends it the next one. Where photos
    travel to actors, a task must not hold many shards at a time.
    """
    wanted = resources.asked(job.recipe, stage).batch_size
    if wanted:
        return max(1, wanted // shard_size(sum(1 for _ in job.listing.photos)))
    return -(-shards // MAX_TASKS) if len(work.steps) == 1 else 1


def _input(missing: list[str], together: int) -> ray.data.Dataset:
    """The names of the shards; `together` of them are the block of a task."""
    names = [{"shard": shard} for shard in missing]
    return ray.data.from_items(names, override_num_blocks=-(-len(names) // together))


def _block(row: type[Row], shard: str, rows: Sequence[Row], spent: dict[str, float]) -> pa.Table:
    """Rows of a shard as they travel: with the shard's name, and the seconds that were spent on it so far.

    A shard without photos has a row without a name: Ray Data forgets empty blocks, but the file must be written.
    """
    table = encode(row, rows or [row()])
    for name in ("read", "busy", "waited"):
        table = table.append_column(f"spent_{name}", pa.array([spent.get(name, 0.0)] * table.num_rows))
    table = table.append_column("spent_at", pa.array([time.time()] * table.num_rows))
    return table.append_column("shard", pa.array([shard] * table.num_rows))


def _shards_of(table: pa.Table, row: type[Row]) -> Iterator[tuple[str, list[Row], dict[str, float]]]:
    """The shards of a block: name, rows, and the seconds spent so far, with the time when they were ready."""
    for shard, part in _parts(table):
        spent = {name: part.column(f"spent_{name}")[0].as_py() for name in ("read", "busy", "waited", "at")}
        yield shard, [one for one in decode(row, part) if one.image_id], spent


def _parts(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each shard of a block."""
    place = 0
    for shard, names in groupby(_texts(table, "shard")):
        part = table.slice(place, len(list(names)))
        place += part.num_rows
        yield shard, part


def _texts(table: pa.Table, column: str) -> list[str]:
    return cast("list[str]", table.column(column).to_pylist())


def _task(
    job: Job,
    stage: str,
    work: Work[Any],
    step: Step | None,
    row: type[Row] | None,
    read: Callable[[Job, str], Sequence[Row]] | None,
    ends: bool,
    at_once: int,
    batch: pa.Table,
) -> pa.Table:
    """A step that runs in tasks, on all shards of a block; the last one writes the files."""
    _hide_other_gpus()
    found = []
    todo: Iterator[tuple[str, Sequence[Row], dict[str, float]]]
    if read is not None:
        todo = ((shard, read(job, shard), {}) for shard in batch.column("shard").to_pylist())
    else:
        todo = _shards_of(batch, row or Row)
    start = time.monotonic()
    for shard, rows, spent in todo:
        if step is not None:
            name = shards.step_name(step, ends)
            kernel = partial(step.kernel, job)
            rows, _ = shards.each(job, (stage, shard, name), kernel, step.row, rows, at_once, _attempt())
        if not ends:
            spent["read"] = time.monotonic() - start
            found.append(_block(step.row if step else Row, shard, rows, spent))
        else:
            job.run.write_shard(work.table, shard, rows)
            spent["write"] = time.monotonic() - start
            found.append(_results(shard, rows, spent))
        start = time.monotonic()
    return pa.concat_tables(found)


def _results(shard: str, rows: Sequence[Row], spent: dict[str, float]) -> pa.Table:
    """What the driver is told: one small row per photo; the seconds of the shard stand in the first one.

    A shard without photos has one row that is no photo.
    """
    errors = [row.error for row in rows] or [""]
    first = [1.0] + [0.0] * (len(errors) - 1)
    seconds = {name: [spent.get(name, 0.0) * share for share in first] for name in SECONDS}
    whose = {"shard": [shard] * len(errors), "photo": [bool(rows)] * len(errors)}
    return pa.table({**whose, "error": errors, **seconds})


def _hide_other_gpus() -> None:
    """Ray shows a process all GPUs of its machine where it gave it none; those belong to others."""
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _attempt() -> int | None:
    """How often the task that runs here was tried before; None where this Ray does not tell."""
    core = getattr(ray._private.worker.global_worker, "core_worker", None)
    ask = getattr(core, "get_current_task_attempt_number", None)
    return int(ask()) if ask is not None else None


class _Actor:
    """A step that holds a network, on an actor."""

    def __init__(self, job: Job, stage: str, step: Step, row: type[Row], threads: int) -> None:
        _hide_other_gpus()
        self._job, self._stage, self._step, self._row = job, stage, step, row
        self._threads, self._kernel = threads, shards.OnOneThread(step.kernel(job))
        self._trace = Trace(job, stage, *TRACED_SHARDS)
        # An actor that died goes on with what it had, and nobody counts how often.
        self._attempt = None if ray.get_runtime_context().was_current_actor_reconstructed else 0

    def __call__(self, batch: pa.Table) -> pa.Table:
        found = []
        for shard, rows, spent in _shards_of(batch, self._row):
            self._trace.step()
            spent["waited"] = max(0.0, time.time() - spent["at"])  # the clocks of two machines may differ
            place = (self._stage, shard, shards.step_name(self._step, False))
            kernel, row = self._kernel, self._step.row
            done, spent["busy"] = shards.each(self._job, place, kernel, row, rows, self._threads, self._attempt)
            found.append(_block(self._step.row, shard, done, spent))
        return pa.concat_tables(found)


@contextmanager
def _whole_blocks() -> Iterator[None]:
    """Ray Data cuts blocks at a size in bytes; here a block is a shard, however large its photos are."""
    context = DataContext.get_current()
    kept, context.target_max_block_size = context.target_max_block_size, None
    try:
        yield
    finally:
        context.target_max_block_size = kept


@contextmanager
def _told_plainly(job: Job, stage: str) -> Iterator[None]:
    try:
        yield
    except ExecutionTimeoutError as error:
        raise RuntimeError(
            f"{stage}: nothing was done for {job.recipe.runtime.no_progress_minutes:g} minutes "
            f"(runtime.no_progress_minutes). What is done is kept; run again to go on. {error}"
        ) from error
    except ray.exceptions.RayError as error:
        if isinstance(error, RecipeError):  # Ray's error is one of the class of its cause, too
            raise RecipeError(str(getattr(error, "cause", error))) from error
        raise RuntimeError(f"{stage}: {root_cause(error)}") from error


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function by a name: the dashboard shows an operator by its function's name."""

    def step(item: Any) -> Any:
        return function(item)

    step.__name__ = name
    return step


def _call(job: Job, threads: int, function: Callable[[Job], None]) -> None:
    _hide_other_gpus()
    torch.set_num_threads(threads)
    function(job)


# ---- trainings through Ray Train


class _RayWorker:
    """A worker of Ray Train; implements `engine.stage.Worker`."""

    def __init__(self, config: dict[str, Any]) -> None:
        context = ray.train.get_context()
        self.job, self.threads = config["job"], config["threads"]
        self.photos = ray.get(config["photos"])
        self._stage, self._folder, self._told, self._reported = config["stage"], config["folder"], -math.inf, -math.inf
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._progress, self._group, self._is_alone = progress_file(self.rank), self.world, False
        self._trace = Trace(self.job, self._stage, *TRACED_STEPS)

    def alone(self) -> _RayWorker:
        other = copy(self)
        other.rank, other.world, other._is_alone = 0, 1, True
        return other

    def tell(self, seen: int, note: str, busy: float, waited: float) -> None:
        self._trace.step()
        if self.rank == 0 and time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            state = {"seen": seen, "note": note, "busy": busy, "waited": waited, "workers": self._group}
            self.job.run.write_json(state, self._folder, self._progress)

    def report(self, metrics: dict[str, Any]) -> None:
        if self._is_alone:  # the others may have fewer epochs, and would never come
            return
        # A report is a barrier; a single worker has nobody to wait for, and epochs of a small head are short.
        if self.world > 1 or time.monotonic() - self._reported > REPORT_EVERY:
            self._reported = time.monotonic()
            ray.train.report(metrics)

    def is_preempted(self) -> bool:
        # What `ray.train.get_preemption_info` returns; but it waits until all workers ask, and those that train alone
        # never ask together.
        return get_train_context().preemption_context.preemption_info is not None

    def stream(
        self, steps: Iterator[dict[str, Any]], read: Callable[[dict[str, np.ndarray]], Iterator[dict[str, np.ndarray]]]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """See `engine.stage.Worker`. A row of the Dataset is a training step, because its photos are one tensor."""
        while rows := list(islice(steps, SPAN)):
            dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // STEPS_A_TASK))
            dataset.set_name(self._stage)
            # The rows come in the order of training, whatever task is done first, so results do not depend on the
            # number of tasks, workers or machines.
            dataset.context.execution_options.preserve_order = True
            fed = dataset.map_batches(read, batch_size=STEPS_A_TASK).iter_torch_batches(
                batch_size=1, prefetch_batches=PREFETCH, device=self.device, pin_memory=self.device.type == "cuda"
            )
            for row in fed:
                yield {name: values[0] for name, values in row.items()}


def progress_file(rank: int) -> str:
    """In a training's folder: how far a worker is."""
    return f"progress-{rank}.json" if rank else PROGRESS


def _train(config: dict[str, Any]) -> None:
    torch.set_num_threads(config["threads"])
    config["loop"](_RayWorker(config))


class _Watch:
    """Passes on to a meter what workers tell, and interrupts a training that stands still for too long."""

    def __init__(self, job: Job, stage: Stage, meter: Meter, workers: int) -> None:
        self._job, self._folder, self._meter, self._workers = job, stage.writes, meter, workers
        self.seen, self.note, self.hung = 0, "", False
        self._told = {"busy": 0.0, "waited": 0.0}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {stage.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        moved = time.monotonic()
        while not self._over.wait(1.0):
            try:
                state = self._state()
            except (StorageError, ValueError):  # storage is away; the workers find out themselves
                continue
            if state and state["seen"] != self.seen:
                moved = time.monotonic()
                # A worker group that starts again counts its seconds from 0.
                spent = {key: state[key] - (old if state[key] >= old else 0) for key, old in self._told.items()}
                self._told = {key: state[key] for key in spent}
                self._meter.add(state["seen"] - self.seen, {"rows": state["seen"] - self.seen, **spent}, state["note"])
                self.seen, self.note = state["seen"], state["note"]
            elif time.monotonic() - moved > 60 * self._job.recipe.runtime.no_progress_minutes:
                self.hung = True
                _thread.interrupt_main()
                return

    def _state(self) -> dict[str, Any] | None:
        """What worker 0 told, or the sum of what all workers told that train alone."""
        told = [self._job.run.read_json(self._folder, progress_file(rank)) for rank in range(self._workers)]
        group = told[0]["workers"] if told[0] else self._workers  # there may be fewer than when the training began
        states = [state for state in told[:group] if state]
        if len(states) < 2:
            return states[0] if states else None
        note = f"{states[0]['note']}, and {len(states) - 1} more at the same time"
        return {key: sum(state[key] for state in states) for key in ("seen", "busy", "waited")} | {"note": note}


# ---- metrics of Ray


def _meter(job: Job, stage: Stage, unit: str, total: int, workers: int) -> Meter:
    """A meter that also feeds Ray's metrics, which the dashboard and Prometheus show; names begin with `ray_`.

    They are kept by the driver alone, from what its tasks, actors and trainers report, so none is lost with a worker.
    """
    counters = {key: Counter(*about, tag_keys=TAGS) for key, about in COUNTERS.items()}
    gauges = {key: Gauge(*about, tag_keys=TAGS) for key, about in GAUGES.items()}
    for metric in (*counters.values(), *gauges.values()):
        metric.set_default_tags({"run": shown(job.run.root.partition("?")[0]), "stage": stage.name})

    def tell(amounts: dict[str, float], status: dict[str, Any]) -> None:
        for key, counter in counters.items():
            if amounts[key]:
                counter.inc(amounts[key])
        share = status["done"] / status["total"] if status["total"] else 1.0
        for key, gauge in gauges.items():
            value = {"progress": share, **status}[key]
            if value is not None:
                gauge.set(value)

    def here() -> dict[str, float]:
        return {kind: ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU")}

    return Meter(job, stage.name, unit, total, workers, here, tell)
