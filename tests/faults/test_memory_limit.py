"""Ray's memory monitor kills a task for its memory: a photo has more tries then than after a crash."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from tests.engine.runner_contract import IN_TASKS, TASKS, TODO
from tests.runs import by_name, empty_job
from wsseg_ray.engine import memory
from wsseg_ray.engine.ray_runner import RayRunner
from wsseg_ray.engine.shards import MAX_DEATHS
from wsseg_ray.engine.stage import Job, Step
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, ImageRow

ROOT = Path(__file__).parents[2]
ROOM = 0.25  # of the memory that is free: what Ray believes to be left

pytestmark = pytest.mark.long


def hungry(job: Job, row: ImageRow) -> ImageRow:
    """Of photo "bad" fill the memory until the process is killed: more often than a photo may crash."""
    if row.image_id == "bad" and len(list(Path(job.run.root).glob("killed*"))) < MAX_DEATHS + 2:
        job.run.write_bytes(b"", f"killed{np.random.default_rng().integers(2**60)}")
        memory.LOW = 1.0  # as Ray does, take the machine for a smaller one: it is short of memory now
        held = []
        while True:
            held.append(np.ones(2**24))  # 128 MB
    return ImageRow(uri=row.split)


def run(folder: str) -> None:
    """In a process of its own: a Ray that takes this machine for a smaller one."""
    now = psutil.virtual_memory()
    taken = 1 - (1 - ROOM) * now.available / now.total
    settings = {"memory_usage_threshold": taken, "memory_monitor_refresh_ms": 50}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _system_config=settings,
        object_store_memory=150 * 2**20,
    )
    step = Step(hungry, ImageRow)
    assert RayRunner().map_shards(empty_job(Path(folder)), TASKS, replace(IN_TASKS, steps=(step,)), TODO) == 6


def test_a_photo_whose_tasks_are_killed_for_memory_is_done_in_the_end(tmp_path):
    words = f"from tests.faults.test_memory_limit import run; run({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", words], check=True, cwd=ROOT, timeout=500)
    done = RunDirectory.at(str(tmp_path))
    found = by_name(done, IMAGES)
    assert found.keys() == {"a", "b", "c", "bad", "odd", "d"}
    assert all(row.uri and not row.error for row in found.values())
    assert done.names("tries", "images") == []
    assert len(list(tmp_path.glob("killed*"))) == MAX_DEATHS + 2
