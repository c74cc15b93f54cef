"""Replay: what a stage wrote, computed again from what the run stores, in one process; nothing is written.

For debugging one photo, and to see whether a change of the code changes a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsseg_ray.engine.local import as_sent, photo_kernel
from wsseg_ray.engine.shards import guard
from wsseg_ray.engine.stage import Job, Stage, as_seen_by, open_run
from wsseg_ray.errors import RecipeError
from wsseg_ray.pipeline import stages_of
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import Row, schema


@dataclass(frozen=True)
class Difference:
    """A column of a photo's row that is not what the run has.

    Arguments:
        largest: the largest difference of its numbers; NaN where shapes, texts or files differ.
    """

    image_id: str
    column: str
    largest: float


class _Unwritten(RunDirectory):
    """A run directory that is read and stays as it is."""

    def write_bytes(self, data: bytes, *parts: str) -> None:
        pass

    def delete(self, *parts: str) -> None:
        pass


def replay(run: str, stage: str, photo: str | None = None) -> Iterator[tuple[Row, list[Difference]]]:
    """Run a stage's kernel again on the photos that the run has, one after the other.

    Arguments:
        run: a run directory.
        stage: a stage that works photo by photo.
        photo: the image_id of the one photo to do; None: all.
    Yields each new row, and what differs in it from the stored one.
    Raises RecipeError where there is no such run, stage or photo, or the stage is a training.
    """
    job = open_run(run)
    stages = stages_of(job.recipe)
    found = next((one for one in stages if one.name == stage), None)
    names = [one.name for one in stages if one.work is not None]
    if found is None:
        raise RecipeError(f"{stage}: no such stage; there are {', '.join(names)}")
    if found.work is None:
        raise RecipeError(f"{stage} is a training: it has no photos to replay; there are {', '.join(names)}")
    any_photo, seen = False, as_seen_by(found, job, stages)
    for row, stored in _rows(replace(seen, run=_Unwritten(job.run.root, job.run.results)), found, photo):
        any_photo = True
        yield row, differences(row, stored)
    if not any_photo:
        raise RecipeError(f"{run}: stage {stage} has no photo{f' {photo}' if photo else 's'}")


def _rows(job: Job, stage: Stage, photo: str | None) -> Iterator[tuple[Row, Row | None]]:
    assert stage.work is not None
    work = stage.work(job)
    kernels = [photo_kernel(job, step) for step in work.steps]
    for shard in job.run.shards(work.table.folder):
        stored = {row.image_id: row for row in job.run.read_shard(work.table, shard)}
        if photo is not None and photo not in stored:
            continue
        for row in work.read(job, shard):
            if photo in (None, row.image_id):
                for step, kernel in zip(work.steps, kernels, strict=True):
                    (row,) = as_sent(step.row, [guard(kernel, step.row, row)])
                yield row, stored.get(row.image_id)


def differences(row: Row, stored: Row | None) -> list[Difference]:
    """What differs between a row and the stored one."""
    if stored is None:
        return [Difference(row.image_id, "image_id", np.nan)]
    found = []
    for column in schema(type(row)).names:
        new, old = getattr(row, column), getattr(stored, column)
        if not _equal(new, old):
            found.append(Difference(row.image_id, column, _largest(new, old)))
    return found


def _equal(new: Any, old: Any) -> bool:
    if isinstance(new, np.ndarray):
        return bool(np.array_equal(new, old, equal_nan=new.dtype.kind == "f"))
    return bool(new == old)


def _largest(new: Any, old: Any) -> float:
    if isinstance(new, np.ndarray) and new.shape == old.shape:
        return float(np.nanmax(np.abs(new.astype(np.float64) - old.astype(np.float64))))
    return abs(new - old) if isinstance(new, int | float) else np.nan


def summary(stage: str, results: Sequence[tuple[Row, list[Difference]]]) -> list[str]:
    """What a person wants to know of a replay: one line per column that differs, and one at the end."""
    lines = []
    every = [difference for _, own in results for difference in own]
    for column in dict.fromkeys(difference.column for difference in every):
        own = [difference for difference in every if difference.column == column]
        photos = ", ".join(difference.image_id for difference in own[:3]) + (", ..." if len(own) > 3 else "")
        lines.append(f"{column}: differs in {len(own)} photos ({photos}), by {max(d.largest for d in own):.3g} at most")
    equal = sum(not own for _, own in results)
    return [*lines, f"{stage}: {equal} of {len(results)} photos are equal to what the run has"]
