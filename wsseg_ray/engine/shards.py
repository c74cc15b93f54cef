"""The work on the photos of one shard, one step at a time: what both runners do.

Ray starts a task again, without end, when its process dies, and a photo that kills every process that touches it would
keep a run busy for ever. So a shard whose process died is suspect: it goes photo by photo, and a note in `tries/` says
which photo it is at. A photo whose process dies twice more is recorded as failed, and the others go on. Where nobody
counts the tries of a shard, as in a run without Ray, a note says beforehand that it is worked on. A process that dies
while the machine is short of memory says little of its photo, for other processes may have taken the memory: such a
photo has MAX_STARVED tries.
"""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from wsseg_ray.engine import memory
from wsseg_ray.engine.stage import Job, Step
from wsseg_ray.engine.threads import one_thread_each
from wsseg_ray.storage import StorageError
from wsseg_ray.tables import Row, Table

TRIES = "tries"
GPU_FAILED, GPU_FULL = "CUDA error", "out of memory"  # in messages of torch
COUNTED = "counts.json"  # in a table's folder: photos and failed photos of each shard
MAX_DEATHS = 2  # of a photo that is worked on alone, after the death that made it suspect
MAX_STARVED = 6  # the same, of deaths while the machine was short of memory


def each(
    job: Job,
    place: tuple[str, str, str],
    kernel: Callable[[Any], Row],
    row: type[Row],
    rows: Sequence[Row],
    at_once: int = 1,
    attempt: int | None = None,
) -> tuple[list[Row], float]:
    """A step's row for each row of a shard, and the seconds that it took.

    Arguments:
        place: stage, shard and the step's name.
        kernel: takes a row. It may have `many`, which takes several rows and returns theirs: for networks on GPUs.
            Where that raises, or the shard is suspect, the rows are taken one by one.
        row: the class of the rows that the step returns.
        at_once: how many rows are worked on at the same time, in threads, unless the shard is suspect.
        attempt: how often this shard was tried before, in vain; None: not known. At 0 no note is read or written: they
            would be most of the requests to a store. Later the shard is suspect.
    """
    note = (TRIES, place[0], f"{place[1]}-{place[2]}.json")
    start, done = time.monotonic(), []
    tries = None if attempt == 0 else job.run.read_json(*note) or (_no_deaths() if attempt else None)
    if tries is None and attempt is None:
        job.run.write_json(_no_deaths(), *note)
    elif tries and tries["at"]:
        deaths = tries["starved" if tries.pop("short", False) else "died"]
        deaths[tries["at"]] = deaths.get(tries["at"], 0) + 1
    if tries is None and (found := _together(kernel, rows)) is not None:
        rows, done = [], found
    elif tries is None and at_once > 1:
        with getattr(kernel, "pool", ThreadPoolExecutor)(at_once) as pool:
            rows, done = [], list(pool.map(partial(guard, kernel, row), rows))
    for one in rows:
        if tries is None:
            done.append(guard(kernel, row, one))
            continue
        now = {**tries, "at": one.image_id}
        job.run.write_json(now, *note)
        with memory.watched(partial(job.run.write_json, {**now, "short": True}, *note)):
            done.append(guard(kernel, row, _given_up(place[0], one, tries)))
    if attempt != 0:
        job.run.delete(*note)
    return done, time.monotonic() - start


def _no_deaths() -> dict[str, Any]:
    """What a note says before a process has died: deaths by photo, and the photo that is worked on now."""
    return {"at": "", "died": {}, "starved": {}}


def _given_up(stage: str, row: Row, tries: dict[str, Any]) -> Row:
    """The row, or one with an error where processes have died too often of it."""
    if tries["died"].get(row.image_id, 0) >= MAX_DEATHS:
        return Row(row.image_id, f"{stage} died each time it worked on this photo")
    if tries["starved"].get(row.image_id, 0) >= MAX_STARVED:
        return Row(
            row.image_id,
            f"{stage} had too little memory each time it worked on this photo alone: set dataset.max_side, or give the "
            f"stage more memory by runtime.stages.{stage}.memory_gb",
        )
    return row


def _together(kernel: Callable[[Any], Row], rows: Sequence[Row]) -> list[Row] | None:
    """The rows of a kernel's `many`; None where it has none, or cannot do all of them.

    Where a GPU has too little memory for all of them, it gets one half and then the other.
    """
    many: Callable[[Sequence[Row]], list[Row]] | None = getattr(kernel, "many", None)
    if many is None or not rows or any(row.error for row in rows):
        return None
    found: list[Row] | None = None
    try:
        found = many(rows)
    except StorageError:
        raise
    except Exception as error:
        if GPU_FULL not in str(error) or len(rows) == 1:
            return None
    if found is None:  # after the handler: inside it, the error's frames keep the memory of the failed pass
        half = len(rows) // 2
        first = _together(kernel, rows[:half])
        rest = None if first is None else _together(kernel, rows[half:])
        return None if first is None or rest is None else [*first, *rest]
    for row, one in zip(found, rows, strict=True):
        row.image_id = one.image_id
    return found


class OnOneThread:
    """An actor's kernel, which computes on one thread of torch wherever it is called.

    On a CPU, n photos on a thread each take less time than one photo after the other on n threads, and no result
    depends on how many cores a machine has: convolutions on more threads differ in the last bits.
    """

    def __init__(self, kernel: Callable[[Any], Row]) -> None:
        self._kernel, self.many = kernel, getattr(kernel, "many", None)

    def __call__(self, row: Any) -> Row:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._kernel(row)
        finally:
            torch.set_num_threads(before)

    def pool(self, threads: int) -> AbstractContextManager[ThreadPoolExecutor]:
        """Threads that call this kernel."""
        return one_thread_each(threads)


def guard(kernel: Callable[[Any], Row], row: type[Row], one: Row) -> Row:
    """The kernel's row, or a row that says why there is none.

    Raises StorageError, and RuntimeError where the GPU failed and not the photo.
    """
    if one.error:
        return row(one.image_id, one.error)
    try:
        found = kernel(one)
        found.image_id = one.image_id
        return found
    except StorageError:
        raise
    except (ValueError, OSError) as error:
        return row(one.image_id, str(error) or type(error).__name__)
    except Exception as error:  # one photo's surprise must not cost the others their results
        if GPU_FAILED in str(error):
            raise RuntimeError(
                f"a GPU of {platform.node()} failed, and all that this process does on it would fail too: {error}; no "
                "photo was lost: run again to go on"
            ) from error
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename.rsplit('/', 1)[-1]}:{where.lineno}"
        return row(one.image_id, f"unexpected {type(error).__name__} at {place}: {error}")


def step_name(step: Step, last: bool) -> str:
    """What a step is called in notes and metrics."""
    return "actor" if step.actor else "write" if last else "read"


class Tally:
    """Counts what became of the photos of a stage, and writes it into the table's folder at the end.

    Arguments:
        table: what the stage writes.
    """

    def __init__(self, job: Job, stage: str, table: Table[Any]) -> None:
        self._run, self._stage, self._folder = job.run, stage, table.folder
        self._counts: dict[str, tuple[int, int]] = {}
        self.photos, self._failed, self._error = 0, 0, ""

    def __enter__(self) -> Tally:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._counts and error is None:
            known = self._run.read_json(self._folder, COUNTED) or {}
            self._run.write_json({**known, **self._counts}, self._folder, COUNTED)

    def add(self, shard: str, photos: int, errors: Sequence[str]) -> None:
        """Count a shard that was written now."""
        self._counts[shard] = (photos, len(errors))
        self.photos, self._failed = self.photos + photos, self._failed + len(errors)
        self._error = [self._error, *errors][-1]

    @property
    def note(self) -> str:
        return f"{self.photos} photos" + (f", {self._failed} failed" if self._failed else "")

    def refuse_all_failed(self, resumed: bool) -> None:
        """Raise RuntimeError where every photo failed: then no photo is at fault."""
        if self.photos and self.photos == self._failed and not resumed:
            raise RuntimeError(f"{self._stage}: all {self.photos} photos failed, one with: {self._error}")


def counts(job: Job, table: Table[Any]) -> dict[str, tuple[int, int]]:
    """How many photos each shard of a table has, and how many of them failed.

    Those that tasks told are in a file; of the others, which a driver that was killed did not write down, the ends of
    their own files are read.
    """
    return job.run.counts(table, job.run.read_json(table.folder, COUNTED) or {})
