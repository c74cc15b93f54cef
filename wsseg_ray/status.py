"""The progress of a run, read from its directory, so that the run can be on this machine or another."""

from __future__ import annotations

import time
from typing import Any

from wsseg_ray.errors import RecipeError
from wsseg_ray.storage import RunDirectory, shown

SILENT = 60.0  # seconds without progress after which the line says so


def lines(run: RunDirectory) -> list[str]:
    """One line per stage: work done, speed, time left.

    Raises RecipeError where the folder is not a run.
    """
    status = run.read_json("status.json") or {}
    return [_line(name, run.entry(folder), status) for name, folder in _stages(run).items()]


def stages(run: RunDirectory) -> list[dict[str, Any]]:
    """What `lines` tells, as plain data.

    Returns a row per stage, with `stage` and `state` (waiting, starting, running, stopped or done). Of a stage that is
    done, `photos`, `failed` and `seconds`; of the stage at work, `done` of `total` `unit`, `photos`, `failed`,
    `seconds`, `note`, and `at`, the time of its last progress (seconds since 1970).
    Raises RecipeError where the folder is not a run.
    """
    status = run.read_json("status.json") or {}
    return [{"stage": name, **_row(name, run.entry(folder), status)} for name, folder in _stages(run).items()]


def is_over(run: RunDirectory) -> bool:
    """Whether every stage is done or the run was stopped."""
    if (run.read_json("status.json") or {}).get("state") == "stopped":
        return True
    entries = [run.entry(folder) for folder in _stages(run).values()]
    return all(entry and entry["state"] == "done" for entry in entries)


def _stages(run: RunDirectory) -> dict[str, str]:
    """The folder of each stage's result, by the stage's name, in order."""
    about = run.read_json("run.json")
    if about is None:
        raise RecipeError(f"{shown(run.root)} is no run: it holds no run.json")
    stages: dict[str, str] = about["stages"]
    return stages


def _row(name: str, entry: dict[str, Any] | None, status: dict[str, Any]) -> dict[str, Any]:
    if not entry:
        return {"state": "waiting"}
    if entry["state"] == "done":
        return {"state": "done", "photos": entry["rows"], **{key: entry[key] for key in ("failed", "seconds")}}
    if status.get("stage") != name:
        return {"state": "starting"}
    kept = ("state", "done", "total", "unit", "failed", "seconds", "note", "at")
    return {**{key: status[key] for key in kept}, "photos": status["rows"]}


def _line(name: str, entry: dict[str, Any] | None, status: dict[str, Any]) -> str:
    if not entry:
        return f"{name:<16} waiting"
    if entry["state"] == "done":
        failed = f", {entry['failed']} failed" if entry["failed"] else ""
        return f"{name:<16} done      {entry['rows']} photos in {_duration(entry['seconds'])}{failed}"
    if status.get("stage") != name:
        return f"{name:<16} starting"
    share = status["done"] / status["total"] if status["total"] else 1.0
    parts = [f"{100 * share:3.0f} %, {status['done']} of {status['total']} {status['unit']}"]
    if status["seconds"] and status["rows"]:
        parts.append(f"{status['rows'] / status['seconds']:.1f} photos/s")
        parts.append(f"{_duration(status['seconds'] * (1 - share) / share)} left" if share else "")
    if status["busy_share"] is not None:
        parts.append(f"actors at work {100 * status['busy_share']:.0f} % of the time")
    parts += [f"{status['failed']:.0f} failed" if status["failed"] else "", status["note"]]
    silence = time.time() - status["at"]
    if status["state"] == "stopped":
        parts.append("run again to continue")
    elif silence > SILENT:
        parts.append(f"no progress for {_duration(silence)}")
    return f"{name:<16} {status['state']:<9} " + "; ".join(part for part in parts if part)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
