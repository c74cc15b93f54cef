"""What a run says of itself: each stage adds its part."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tests.runs import copy, empty_job
from wsseg_ray import pipeline, summary
from wsseg_ray.datasets import demo
from wsseg_ray.engine.stage import Job, Stage, open_run
from wsseg_ray.report import Strip
from wsseg_ray.storage import RunDirectory

ENTRY = {"state": "done", "rows": 8, "failed": 1, "seconds": 2.0, "worked": 4, "busy": 1.0, "fingerprint": "x"}


def photo(job: Job) -> list[Strip]:
    return [Strip("<a> photo", "train", np.zeros((8, 8, 3), np.uint8), ["cat"])]


FIRST = Stage(
    "first",
    (),
    "first",
    metrics=lambda job: {"hcp": {"log": []}, "data": {"nothing": math.nan, "classes": [1.0, math.nan]}},
)
SECOND = Stage("second", (), "second", metrics=lambda job: {"hcp": {"val_map": 3.0}}, strips=photo)


@pytest.fixture
def job(tmp_path) -> Job:
    job = empty_job(tmp_path, classes=("cat",))
    for name in ("first", "second"):
        job.run.write_entry(ENTRY, name)
    job.run.write_json([{"image_id": "<a>", "stage": "first", "error": "no <photo>"}], "failures", "first.json")
    return job


def test_stages_add_to_the_same_parts(job):
    found = summary.metrics(job, [FIRST, SECOND])
    assert found["hcp"] == {"log": [], "val_map": 3.0} and found["classes"] == ["cat"]
    assert found["data"] == {"nothing": None, "classes": [1.0, None]}, "JSON knows no NaN"
    assert found["stages"]["first"] == {"rows": 8, "failed": 1, "seconds": 2.0, "rows_per_second": 2.0}


def test_a_stage_that_took_no_time_has_no_rate(job):
    job.run.write_entry({**ENTRY, "seconds": 0.0}, "first")
    assert summary.metrics(job, [FIRST])["stages"]["first"]["rows_per_second"] is None


def test_failures_of_all_stages(job):
    assert summary.failures(job, [FIRST, SECOND]) == [{"image_id": "<a>", "stage": "first", "error": "no <photo>"}]


def test_the_page_has_what_the_stages_give(tiny_local, tmp_path):
    """Of the stages that ran: those that were left out are not there, whatever an older run left of them."""
    run = copy(tiny_local[1], tmp_path)
    job = open_run(run)
    before = run.read_bytes("report.html").decode().replace(tiny_local[1].root, run.root)
    stages = pipeline.stages_of(job.recipe)
    metrics, place = summary.conclude(job, stages[:6])
    page = run.read_bytes("report.html").decode()
    assert place == run.uri("report.html") and metrics == json.loads(run.read_bytes("metrics.json"))
    assert "networks" not in metrics and len(page) < len(before)
    assert page.count("demo_train_") >= 7 and "demo_val_" not in page and "demo_val_" in before
    summary.conclude(job, stages)
    assert run.read_bytes("report.html").decode() == before, "it can be written again"


def test_where_the_page_lies_is_told_without_the_password(job, monkeypatch):
    monkeypatch.setattr(RunDirectory, "uri", lambda self, *parts: "s3://key:secret@b/run/report.html")
    monkeypatch.setattr(RunDirectory, "write_bytes", lambda *_: None)
    assert summary.conclude(job, [])[1] == "s3://b/run/report.html"


def test_pictures_are_of_photos_with_all_classes(tiny_local):
    job = open_run(tiny_local[1])
    by_name = {stage.name: stage for stage in pipeline.stages_of(job.recipe)}
    train = by_name["supervise"].strips(job)
    val = [strip for strip in by_name["predict"].strips(job) if strip.score is None]  # without the gallery
    assert len(train) == len(val) == 7
    for strip in train:
        assert strip.split == "train" and strip.truth is not None and strip.rough is not None
        assert strip.photo.shape[:2] == strip.truth.shape == strip.rough.shape
        assert [name for name, _ in strip.maps] == strip.labels and set(strip.labels) <= set(demo.CLASSES)
    for strip in val:
        assert [name for name, _ in strip.predictions] == ["AN_A + CRF", "SN_B + CRF", "FULL + CRF"]
        assert all(labels.shape == strip.photo.shape[:2] for _, labels in strip.predictions)
