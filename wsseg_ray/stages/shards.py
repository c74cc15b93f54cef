"""One Ray Data execution over the shards of a stage that are not done yet.

A row of the Dataset is a shard: a few photos that are read, computed and written together. A shard that has its file
is done, so a stage that was killed goes on with the ones that have none.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from wsseg_ray.console import Progress
from wsseg_ray.stages.job import Job, actor_resources

Row = dict[str, Any]


def map_shards(
    job: Job,
    stage: str,
    target: str,
    shards: dict[str, Any],
    load: Callable[[Job, str, Any], list[Row]],
    compute: Callable[[Job, Row], Row] | None = None,
    actor: type | None = None,
    finish: Callable[[Job, Row], Row] | None = None,
) -> int:
    """Map a kernel over every photo of the shards that `target` lacks, and write a file a shard.

    A row that raises becomes a row with an `error`, and the others go on.

    Arguments:
        stage: the Dataset's name on the dashboard and in the progress bar.
        shards: the name of every shard, and what `load` needs to know of it.
        load: `(job, shard, known) -> rows`, runs in tasks: reads tables, decodes photos. It may set `error` itself.
        compute: `(job, row) -> row`, runs in the same task, or
        actor: a class `actor(job)` called with a row, one instance an actor (and a GPU), fed by the tasks.
        finish: `(job, row) -> row`, runs in tasks on what the actor gave.
    Returns the number of photos done now. Raises RuntimeError where every photo failed: that is no photo's fault.
    """
    done = set(job.run.shards(target))
    todo = [{"shard": name, "payload": pickle.dumps(known)} for name, known in shards.items() if name not in done]
    if not todo:
        return 0
    dataset = ray.data.from_items(todo, override_num_blocks=len(todo))
    dataset.set_name(stage)
    if actor is None:
        dataset = dataset.map(partial(_in_one_task, job, target, load, compute))
    else:
        dataset = (
            dataset.map(partial(_load, job, load))
            .map(
                _Actor,
                fn_constructor_args=(job, actor),
                compute=ActorPoolStrategy(size=min(job.recipe.runtime.num_workers, len(todo))),
                **actor_resources(job.recipe),
            )
            .map(partial(_write, job, target, finish))
        )
    rows = failed = 0
    with Progress(stage, "shards", len(todo)) as progress:
        for result in dataset.iter_rows():
            rows, failed = rows + result["rows"], failed + result["failed"]
            progress.advance(1, f"{rows} photos" + (f", {failed} failed" if failed else ""))
    if rows and rows == failed and not done:
        raise RuntimeError(f"{stage}: all {rows} photos failed, one with: {result['error']}")
    return rows


def _in_one_task(job: Job, target: str, load: Callable, compute: Callable, item: Row) -> Row:
    rows = load(job, item["shard"], pickle.loads(item["payload"]))
    return _write_rows(job, target, item["shard"], [_guard(partial(compute, job), row) for row in rows])


def _load(job: Job, load: Callable, item: Row) -> Row:
    return {"shard": item["shard"], "payload": pickle.dumps(load(job, item["shard"], pickle.loads(item["payload"])))}


class _Actor:
    def __init__(self, job: Job, actor: type) -> None:
        self._kernel = actor(job)

    def __call__(self, item: Row) -> Row:
        rows = [_guard(self._kernel, row) for row in pickle.loads(item["payload"])]
        return {"shard": item["shard"], "payload": pickle.dumps(rows)}


def _write(job: Job, target: str, finish: Callable | None, item: Row) -> Row:
    rows = pickle.loads(item["payload"])
    if finish is not None:
        rows = [_guard(partial(finish, job), row) for row in rows]
    return _write_rows(job, target, item["shard"], rows)


def _guard(kernel: Callable[[Row], Row], row: Row) -> Row:
    """The kernel's row, or a row that says why there is none."""
    if row.get("error"):
        return row
    try:
        return {"image_id": row["image_id"], **kernel(row)}
    except (ValueError, OSError) as error:
        return {"image_id": row["image_id"], "error": str(error) or type(error).__name__}
    except Exception as error:  # one photo's surprise must not cost the others theirs
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename.rsplit('/', 1)[-1]}:{where.lineno}"
        return {"image_id": row["image_id"], "error": f"unexpected {type(error).__name__} at {place}: {error}"}


def _write_rows(job: Job, target: str, shard: str, rows: list[Row]) -> Row:
    job.run.write_shard(target, shard, rows)
    errors = [row["error"] for row in rows if row.get("error")]
    return {"shard": shard, "rows": len(rows), "failed": len(errors), "error": errors[-1] if errors else ""}
