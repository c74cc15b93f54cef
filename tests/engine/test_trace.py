"""Traces of actors and trainers."""

import json

import torch

from tests.runs import empty_job
from wsseg_ray.engine.trace import FOLDER, Trace


def test_the_recorded_steps_alone_are_in_the_trace(tmp_path):
    job = empty_job(tmp_path, "runtime.profile=true")
    trace = Trace(job, "score", skipped=1, recorded=2)
    for operation in (torch.sin, torch.cos, torch.tan, torch.exp):
        trace.step()
        operation(torch.ones(3))
    (file,) = job.run.names(*FOLDER)
    names = {event["name"] for event in json.loads(job.run.read_bytes(*FOLDER, file))["traceEvents"]}
    assert file.startswith("score-") and {"aten::cos", "aten::tan"} <= names
    assert not {"aten::sin", "aten::exp"} & names


def test_nothing_is_recorded_unless_it_is_asked_for(tmp_path):
    job = empty_job(tmp_path)
    trace = Trace(job, "score", skipped=0, recorded=1)
    for _ in range(3):
        trace.step()
    assert job.run.names(*FOLDER) == []
