"""What a run says of itself at the end: `metrics.json` and `report.html`, from what its stages contribute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wsseg_ray.engine.stage import Job, Stage, as_seen_by
from wsseg_ray.recipe import dump
from wsseg_ray.report import render
from wsseg_ray.storage import shown

PAGE = "report.html"


def conclude(job: Job, stages: Sequence[Stage]) -> tuple[dict[str, Any], str]:
    """Write both files; returns the metrics, and where the report is.

    Arguments:
        stages: those that ran or were done before; later ones are left out, for what they left may be stale.
    """
    found = metrics(job, stages)
    job.run.write_json(found, "metrics.json")
    page = render(
        f"{job.recipe.dataset.layout} · {', '.join(job.classes)}" if len(job.classes) <= 6 else "wsseg_ray",
        found,
        job.classes,
        [strip for stage in stages for strip in stage.strips(as_seen_by(stage, job, stages))],
        failures(job, stages),
        dump(job.recipe),
        f"wsseg run recipe.yaml --run-dir {shown(job.run.root)}",
    )
    job.run.write_bytes(page.encode(), PAGE)
    return found, shown(job.run.uri(PAGE))


def metrics(job: Job, stages: Sequence[Stage]) -> dict[str, Any]:
    """Every number of the run, from its tables; IoU values are percentages."""
    found: dict[str, Any] = {
        "classes": job.classes,
        "stages": {stage.name: _speed(job, stage) for stage in stages},
    }
    for stage in stages:
        for key, part in stage.metrics(as_seen_by(stage, job, stages)).items():
            found[key] = {**found.get(key, {}), **part}
    return _plain(found)


def failures(job: Job, stages: Sequence[Stage]) -> list[dict[str, str]]:
    """Every photo that could not be processed: image_id, stage, error."""
    return [one for stage in stages for one in job.run.read_json("failures", f"{stage.name}.json") or []]


def _speed(job: Job, stage: Stage) -> dict[str, float]:
    entry = job.run.entry(stage.writes)
    assert entry is not None  # the stage is done
    rate = entry["worked"] / entry["seconds"] if entry["seconds"] else math.nan
    return {**{key: entry[key] for key in ("rows", "failed", "seconds")}, "rows_per_second": rate}


def _plain(value: Any) -> Any:
    """NaN as None: JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
