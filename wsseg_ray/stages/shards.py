"""One Ray Data execution over the shards of a stage that are not done yet.

A row of the Dataset is a shard: a few photos that are read, computed and written together. A shard that has its file
is done, so a stage that was killed goes on with the ones that have none.

Ray starts a task again, without end, when its process dies; a photo that kills every process that touches it would
keep a run busy for ever. So a shard that is being worked on leaves a note in `tries/`, and one that finds such a note
goes photo by photo and writes down which it is at: who dies twice more is a failure, and the others go on.
"""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from wsseg_ray.stages.job import Job
from wsseg_ray.stages.meter import Meter
from wsseg_ray.stages.resources import needs
from wsseg_ray.tables import MAX_SHARD_ROWS, StorageError

TRIES = "tries"
MAX_DEATHS = 2  # of a photo that is worked on alone, after the one that made it suspect

Row = dict[str, Any]


def map_shards(
    job: Job,
    stage: str,
    target: str,
    shards: dict[str, Any],
    load: Callable[[Job, str, Any], list[Row]],
    kernel: Callable[[Job, Row], Row],
    actor: Callable[[Job], Callable[[Row], Row]] | None = None,
    finish: Callable[[Job, Row], Row] | None = None,
    resources: str | None = None,
) -> int:
    """Map a kernel over every photo of the shards that `target` lacks, and write a file a shard.

    A row that raises becomes a row with an `error`, and the others go on.

    Arguments:
        stage: the Dataset's name on the dashboard and in the progress bar.
        shards: the name of every shard, and what `load` needs to know of it.
        load: `(job, shard, known) -> rows`, runs in tasks: reads tables.
        kernel: `(job, row) -> row`, runs in the same task; what the actor is fed, or all there is to do.
        actor: `actor(job)` is called with a row, one instance an actor (and a GPU).
        finish: `(job, row) -> row`, runs in tasks on what the actor gave.
        resources: whose `runtime.stages` it takes; None: `stage`'s.
    Returns the number of photos done now. Raises RuntimeError where every photo failed (that is no photo's fault),
    where storage fails for good, and where nothing is done for `runtime.no_progress_minutes`.
    """
    done = set(job.run.shards(target))
    todo = [{"shard": name, "payload": pickle.dumps(known)} for name, known in shards.items() if name not in done]
    if not todo:
        return 0
    resources = resources or stage
    wanted = needs(job.recipe, resources)
    photos = getattr(job.recipe.runtime.stages, resources).batch_size or 1
    dataset = ray.data.from_items(todo, override_num_blocks=-(-len(todo) // max(1, photos // MAX_SHARD_ROWS)))
    dataset.set_name(stage)
    dataset.context.execution_no_progress_timeout_s = 60 * job.recipe.runtime.no_progress_minutes
    # The dashboard shows an operator by its function's name.
    read = partial(_read, job, stage, load, kernel)
    write = partial(_write, job, stage, target, finish)
    if actor is None:
        tasks = TaskPoolStrategy(size=wanted.most)
        dataset = dataset.map(_named(stage, lambda item: write(read(item))), compute=tasks, **wanted.options())
    else:
        pool = ActorPoolStrategy(min_size=min(wanted.least, len(todo)), max_size=min(wanted.most, len(todo)))
        dataset = (
            dataset.map(_named(f"{stage}_read", read))
            .map(type(stage, (_Actor,), {}), fn_constructor_args=(job, stage, actor), compute=pool, **wanted.options())
            .map(_named(f"{stage}_write", write))
        )
    rows = failed = 0
    with Meter(job, stage, "shards", len(todo), wanted.most if actor else 0) as meter:
        try:
            for result in dataset.iter_rows():
                rows, failed = rows + result["rows"], failed + result["failed"]
                meter.add(1, result, f"{rows} photos" + (f", {failed} failed" if failed else ""))
        except ExecutionTimeoutError as error:
            raise RuntimeError(
                f"{stage}: nothing was done for {job.recipe.runtime.no_progress_minutes:g} minutes "
                f"(runtime.no_progress_minutes). What is done is kept; run again to go on. {error}"
            ) from error
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"{stage}: {root_cause(error)}") from error
    if rows and rows == failed and not done:
        raise RuntimeError(f"{stage}: all {rows} photos failed, one with: {result['error']}")
    return rows


def root_cause(error: BaseException) -> str:
    """What went wrong in a task or a worker, without the traces of what carried it here.

    Ray hands over the text of the first error alone: it is the last line before what it led to.
    """
    text = str(error).partition("\nThe above exception was")[0].strip()
    return text.rsplit("\n", 1)[-1].removeprefix(f"{StorageError.__module__}.{StorageError.__name__}: ")


def guard(kernel: Callable[[Row], Row], row: Row) -> Row:
    """The kernel's row, or a row that says why there is none."""
    if row.get("error"):
        return row
    try:
        return {"image_id": row["image_id"], **kernel(row)}
    except StorageError:
        raise
    except (ValueError, OSError) as error:
        return {"image_id": row["image_id"], "error": str(error) or type(error).__name__}
    except Exception as error:  # one photo's surprise must not cost the others theirs
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename.rsplit('/', 1)[-1]}:{where.lineno}"
        return {"image_id": row["image_id"], "error": f"unexpected {type(error).__name__} at {place}: {error}"}


def _named(name: str, function: Callable[[Row], Row]) -> Callable[[Row], Row]:
    def step(item: Row) -> Row:
        return function(item)

    step.__name__ = name
    return step


def _read(job: Job, stage: str, load: Callable, kernel: Callable, item: Row) -> Row:
    rows = load(job, item["shard"], pickle.loads(item["payload"]))
    return _each(job, (stage, item["shard"], "read"), partial(kernel, job), rows, {"busy": 0.0})


class _Actor:
    def __init__(self, job: Job, stage: str, actor: Callable[[Job], Callable[[Row], Row]]) -> None:
        self._job, self._stage, self._kernel = job, stage, actor(job)

    def __call__(self, item: Row) -> Row:
        rows, spent = pickle.loads(item["payload"])
        spent["waited"] = max(0.0, time.time() - item["at"])  # the clocks of two machines may differ
        return _each(self._job, (self._stage, item["shard"], "actor"), self._kernel, rows, spent)


def _write(job: Job, stage: str, target: str, finish: Callable | None, item: Row) -> Row:
    rows, spent = pickle.loads(item["payload"])
    if finish is not None:
        done = _each(job, (stage, item["shard"], "write"), partial(finish, job), rows, spent)
        rows, spent = pickle.loads(done["payload"])
    job.run.write_shard(target, item["shard"], rows)
    errors = [row["error"] for row in rows if row.get("error")]
    return {"rows": len(rows), "failed": len(errors), "error": errors[-1] if errors else "", "waited": 0.0, **spent}


def _each(job: Job, step: tuple[str, str, str], kernel: Callable, rows: list[Row], spent: dict[str, float]) -> Row:
    """The kernel's row for each, as the next step takes them. What died here before goes photo by photo."""
    note = (TRIES, step[0], f"{step[1]}-{step[2]}.json")
    start, tries, done = time.monotonic(), job.run.read_json(*note), []
    if tries is None:
        job.run.write_json({"at": "", "died": {}}, *note)
    elif tries["at"]:
        tries["died"][tries["at"]] = tries["died"].get(tries["at"], 0) + 1
    for row in rows:
        image_id = row["image_id"]
        if tries is not None:
            if tries["died"].get(image_id, 0) >= MAX_DEATHS:
                row = {"image_id": image_id, "error": f"{step[0]} died each time it worked on this photo"}
            job.run.write_json({**tries, "at": image_id}, *note)
        done.append(guard(kernel, row))
    job.run.delete(*note)
    spent["busy" if step[2] == "actor" else step[2]] = time.monotonic() - start
    return {"shard": step[1], "payload": pickle.dumps((done, spent)), "at": time.time()}
