"""Traces of what torch does in actors and trainers, for https://ui.perfetto.dev: with `runtime.profile`."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from wsseg_ray.engine.stage import Job

FOLDER = ("logs", "traces")
TRACED_STEPS = (10, 10)  # of a training: those that are skipped, and those that are recorded
TRACED_SHARDS = (1, 2)  # of an actor


class Trace:
    """Records a few steps of a process: `step` is called before each. It does nothing without `runtime.profile`, and
    writes nothing where there are fewer steps.

    Arguments:
        stage: the trace is `logs/traces/<stage>-<machine>-<process>.json` of the run.
        skipped: steps before the first one that is recorded; in them caches fill.
        recorded: steps.
    """

    def __init__(self, job: Job, stage: str, skipped: int, recorded: int) -> None:
        self._run, self._name = job.run, f"{stage}-{platform.node()}-{os.getpid()}.json"
        self._begin, self._end = skipped, skipped + recorded
        self._profiler: Any = None
        self._steps = 0 if job.recipe.runtime.profile else None

    def step(self) -> None:
        if self._steps is None:
            return
        if self._steps == self._begin:
            self._start()
        elif self._steps == self._end:
            self._stop()
        self._steps += 1

    def _start(self) -> None:
        from torch.profiler import profile

        self._profiler = profile()
        self._profiler.start()

    def _stop(self) -> None:
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, self._name)
            self._profiler.export_chrome_trace(str(file))
            self._run.write_bytes(file.read_bytes(), *FOLDER, self._name)
