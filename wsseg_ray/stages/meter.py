"""How far a stage is, for everyone who watches: the terminal, Ray's metrics and the run's `status.json`.

Metrics are kept by the driver alone, from what its tasks, actors and trainers report, so none is lost with a worker.
Each has the tags `run` and `stage`; on the dashboard and in Prometheus their names begin with `ray_`.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from wsseg_ray.console import Progress
from wsseg_ray.stages.job import Job
from wsseg_ray.tables import shown

STATUS = "status.json"
STATUS_EVERY = 2.0  # seconds between two writings of it
TAGS = ("run", "stage")
COUNTERS = {
    "rows": ("wsseg_rows", "Photos that a stage has done; of trainings: photos seen, over all epochs"),
    "failed": ("wsseg_failed_rows", "Photos that a stage could not process"),
    "task": ("wsseg_task_seconds", "Seconds that tasks worked: reading, decoding, kernels of the CPU, writing"),
    "busy": ("wsseg_busy_seconds", "Seconds that actors or trainers computed, on GPUs where they have them"),
    "waited": ("wsseg_queue_wait_seconds", "Seconds that what actors work on lay ready; of trainers: that they waited"),
}
GAUGES = {
    "seconds": ("wsseg_stage_seconds", "Seconds since the stage began"),
    "share": ("wsseg_busy_share", "Share of the time that actors or trainers computed: the GPUs, where they have them"),
    "progress": ("wsseg_progress", "Share of the stage's work that is done"),
}


class Meter:
    """The progress of one stage; use it in a `with` statement.

    Arguments:
        unit: what `total` counts: shards, or photos of a training.
        workers: actors or trainers at most; 0: there are none.
    """

    def __init__(self, job: Job, stage: str, unit: str, total: int, workers: int) -> None:
        self._job, self._stage, self._unit, self._total, self._workers = job, stage, unit, total, workers
        self._done, self._sums = 0, dict.fromkeys(COUNTERS, 0.0)
        self._start = self._written = time.monotonic()
        self._progress = Progress(stage, unit, total)
        self._note = ""
        self._counters = {key: Counter(*about, tag_keys=TAGS) for key, about in COUNTERS.items()}
        self._gauges = {key: Gauge(*about, tag_keys=TAGS) for key, about in GAUGES.items()}
        for metric in (*self._counters.values(), *self._gauges.values()):
            metric.set_default_tags({"run": shown(job.run.root.partition("?")[0]), "stage": stage})

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
        for key, counter in self._counters.items():
            amount = max(0.0, amounts.get(key, 0.0))
            self._sums[key] += amount
            if amount:
                counter.inc(amount)
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
            "cluster": {kind: ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU")},
        }
        self._gauges["seconds"].set(seconds)
        self._gauges["progress"].set(self._done / self._total if self._total else 1.0)
        if status["busy_share"] is not None:
            self._gauges["share"].set(status["busy_share"])
        self._job.run.write_json(status, STATUS)

    def __enter__(self) -> Meter:
        self._progress.__enter__()
        self._tell("running")
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        self._progress.__exit__()
        self._tell("stopped" if error else "done")
