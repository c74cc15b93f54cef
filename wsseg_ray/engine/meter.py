"""How far a stage is, for everyone who watches: the terminal, the run's `status.json`, and a runner's own metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from wsseg_ray.console import Progress
from wsseg_ray.engine.stage import Job

STATUS = "status.json"
STATUS_EVERY = 2.0  # seconds between two writings of it
AMOUNTS = ("rows", "failed", "task", "busy", "waited")


class Meter:
    """The progress of one stage; use it in a `with` statement.

    Arguments:
        unit: what `total` counts: shards, or photos of a training.
        workers: actors or trainers at most; 0: there are none.
        cluster: CPUs and GPUs that the runner has now, by kind.
        tell: is given the amounts since the last call, by name, and the status; for a runner's own metrics.
    """

    def __init__(
        self,
        job: Job,
        stage: str,
        unit: str,
        total: int,
        workers: int,
        cluster: Callable[[], dict[str, float]],
        tell: Callable[[dict[str, float], dict[str, Any]], None] = lambda amounts, status: None,
    ) -> None:
        self._job, self._stage, self._unit, self._total, self._workers = job, stage, unit, total, workers
        self._cluster, self._outside = cluster, tell
        self._done, self._sums, self._new = 0, dict.fromkeys(AMOUNTS, 0.0), dict.fromkeys(AMOUNTS, 0.0)
        self._start = self._written = time.monotonic()
        self._progress = Progress(stage, unit, total)
        self._note = ""

    def add(self, done: int, amounts: dict[str, float], note: str) -> None:
        """Count what was done since the last call.

        Arguments:
            done: of the unit.
            amounts: `rows`, `failed` and the seconds `read`, `write`, `busy`, `waited`; what is missing is 0.
            note: what a person wants to know now.
        """
        self._done, self._note = self._done + done, note
        self._progress.advance(done, note)
        amounts = {**amounts, "task": amounts.get("read", 0.0) + amounts.get("write", 0.0)}
        for key in AMOUNTS:
            amount = max(0.0, amounts.get(key, 0.0))
            self._sums[key] += amount
            self._new[key] += amount
        if time.monotonic() - self._written > STATUS_EVERY:
            self._tell("running")

    def _tell(self, state: str) -> None:
        self._written = time.monotonic()
        seconds = self._written - self._start
        status = {
            "stage": self._stage,
            "state": state,
            "unit": self._unit,
            "done": self._done,
            "total": self._total,
            "seconds": seconds,
            "note": self._note,
            "at": time.time(),
            **self._sums,
            "busy_share": self._sums["busy"] / seconds / self._workers if self._workers and seconds else None,
            "cluster": self._cluster(),
        }
        new, self._new = self._new, dict.fromkeys(AMOUNTS, 0.0)
        self._outside(new, status)
        self._job.run.write_json(status, STATUS)

    def __enter__(self) -> Meter:
        self._progress.__enter__()
        self._tell("running")
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        self._progress.__exit__()
        self._tell("stopped" if error else "done")
