"""Whole runs with real Ray on tiny photos: what they leave, and that nothing is lost when they are disturbed."""

from __future__ import annotations

import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from tests.conftest import TINY
from wsseg_ray import pipeline, recipe
from wsseg_ray.datasets import demo
from wsseg_ray.errors import DatasetError, WeightsError
from wsseg_ray.recipe import RIVALS
from wsseg_ray.segmentation.objectives.ilp import ILP
from wsseg_ray.stages import training
from wsseg_ray.tables import SCHEMAS, RunDirectory


def copy(run: RunDirectory, tmp_path) -> RunDirectory:
    shutil.copytree(run.root, tmp_path / "run")
    return RunDirectory.at(str(tmp_path / "run"))


def same_rows(a: RunDirectory, b: RunDirectory, table: str) -> bool:
    """Every value of every row but the paths, which hold the run directory's own."""
    left, right = ({row["image_id"]: row for row in run.rows(table)} for run in (a, b))
    if left.keys() != right.keys():
        return False
    names = [name for name in SCHEMAS[table].names if not name.endswith("uri")]
    return all(np.array_equal(left[i][name], right[i][name]) for i in left for name in names)


def made(run: RunDirectory) -> dict[str, dict]:
    return {name: run.read_json("stages", f"{name}.json") for name in pipeline.STAGES}


def kill_driver(
    run: RunDirectory,
    settings: list[str],
    until: str,
    reached: Callable[[], object],
    how: signal.Signals = signal.SIGKILL,
) -> None:
    """Start the demo as a process of its own, and kill it when it has come so far."""
    command = [sys.executable, "-m", "wsseg_ray", "run", "demo", "--run-dir", run.root, "--until", until]
    command += [word for override in settings for word in ("--set", override)]
    with subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": "local"}, stderr=subprocess.DEVNULL) as driver:
        while not reached():
            with suppress(subprocess.TimeoutExpired):  # a loop that never waits would take a core from the run
                raise AssertionError(f"the run ended by itself, with exit code {driver.wait(0.1)}")
        driver.send_signal(how)


def test_a_run_leaves_what_the_design_says(tiny_run):
    outcome, run = tiny_run
    assert outcome.failed == {} and outcome.report == run.uri("report.html")
    metrics = run.read_json("metrics.json")
    assert metrics["data"] == {"train": 12, "val": 12, "single_label": metrics["data"]["single_label"]} | {
        "train_with_masks": 12
    }
    assert list(metrics["stages"]) == list(pipeline.STAGES)
    assert all(entry["failed"] == 0 and entry["rows"] > 0 for entry in metrics["stages"].values())
    busy = {name for name, entry in made(run).items() if 0 < entry["busy"] < entry["seconds"]}
    assert busy == {"train_hcp", "score", "train_segmenter", "predict"}
    assert set(metrics["networks"]) == {"AN_A", "SN_B", "FULL", "AN_A_unrefined", "SN_B_unrefined"}
    for network in metrics["networks"].values():
        assert 0 <= network["val"]["miou"] <= 100 and set(network["val"]["iou_crf"]) == {"background", *demo.CLASSES}
    assert metrics["supervision"]["photos"] == 12
    assert set(metrics["supervision"]["ablation"]) == {"none", "nearest", "farthest", "norm", "score", "area", "random"}
    in_use = metrics["supervision"]["ablation"][metrics["supervision"]["keep"]]
    assert in_use["localization_miou"] == metrics["supervision"]["localization_miou"]
    for table, count in (("images", 24), ("proposals", 12), ("scores", 24), ("supervision", 12), ("predictions", 12)):
        rows = list(run.rows(table))
        assert len(rows) == count == len({row["image_id"] for row in rows}), table


def test_predictions_are_a_voc_submission(tiny_run):
    _, run = tiny_run
    folder = ("predictions", "SN_B", "results", "VOC2012", "Segmentation", "comp6_val_cls")
    sizes = {row["image_id"]: (row["width"], row["height"]) for row in run.rows("images") if row["split"] == "val"}
    assert run.names(*folder) == sorted(f"{image_id}.png" for image_id in sizes)
    for image_id, size in sizes.items():
        with Image.open(io.BytesIO(run.read_bytes(*folder, f"{image_id}.png"))) as labels:
            assert labels.mode == "P" and labels.size == size
            assert np.asarray(labels).max() <= len(demo.CLASSES)
    with zipfile.ZipFile(io.BytesIO(run.read_bytes("predictions", "SN_B", "results.zip"))) as archive:
        place = "/".join(folder[2:])
        assert archive.namelist() == [f"{place}/{image_id}.png" for image_id in sorted(sizes)]
        first = min(sizes)
        assert archive.read(f"{place}/{first}.png") == run.read_bytes(*folder, f"{first}.png")


def test_losses_are_there_for_tensorboard(tiny_run):
    run = tiny_run[1]
    networks = run.read_json("metrics.json")["networks"]
    assert set(run.names("logs", "tensorboard")) == {"HCP", *networks}
    for name, network in networks.items():
        assert scalars(run, name) == [("loss", 1, pytest.approx(network["log"][0]["loss"]))]
    log = run.read_json("hcp", "log.json")["log"]
    assert scalars(run, "HCP") == [(f"loss/{entry['step']}", 1, pytest.approx(entry["loss"])) for entry in log]


def scalars(run: RunDirectory, name: str) -> list[tuple[str, int, float]]:
    """Tag, step and value of the events in a TensorBoard file: records of length, checksum, event, checksum."""
    data, found = run.read_bytes("logs", "tensorboard", name, "events.out.tfevents.0"), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found


def test_the_same_recipe_again_does_nothing(tiny_run, tiny, tmp_path, capfd):
    run = copy(tiny_run[1], tmp_path)
    before = made(run)
    pipeline.run(recipe.load("demo", tiny), run.root)
    assert made(run) == before
    assert capfd.readouterr().err.count("done before") == len(pipeline.STAGES)


def test_a_changed_key_reruns_what_depends_on_it_alone(tiny_run, tiny, tmp_path):
    run = copy(tiny_run[1], tmp_path)
    before = made(run)
    pipeline.run(recipe.load("demo", [*tiny, "refinement.keep=farthest"]), run.root, "supervise")
    after = made(run)
    assert [name for name in after if after[name] != before[name]] == ["refine", "supervise"]
    supervision = run.read_json("metrics.json")["supervision"]
    assert supervision["keep"] == "farthest"
    assert supervision["localization_miou"] == supervision["ablation"]["farthest"]["localization_miou"]


def test_the_rivals_are_networks_like_others(tiny_run, tiny, tmp_path):
    """They are trained beside what is there, on all photos, and measured like it."""
    run = copy(tiny_run[1], tmp_path)
    before = run.read_bytes("segmenters", "SN_B", "network.pt")
    late = "ILP_BB"  # a copy of MIL-ILP's network, which is then there: nothing is trained for it
    first = [name for name in RIVALS if name != late]
    settings = [*tiny, f"segmentation.networks=[SN_B, {', '.join(first)}]"]
    pipeline.run(recipe.load("demo", settings), run.root, "train_segmenter")
    with mock.patch.object(training, "fit", side_effect=AssertionError("trained again")):
        pipeline.run(recipe.load("demo", [*tiny, f"segmentation.networks=[SN_B, {', '.join(RIVALS)}]"]), run.root)
    assert run.read_bytes("segmenters", "SN_B", "network.pt") == before
    networks = run.read_json("metrics.json")["networks"]
    assert set(networks) == {"SN_B", "SN_B_unrefined", *RIVALS}
    for name in RIVALS:
        assert networks[name]["val"]["photos"] == 12 and 0 < networks[name]["log"][0]["loss"] < 10
    assert all(name in run.read_bytes("report.html").decode() for name in RIVALS)
    assert len({run.read_bytes("segmenters", name, "network.pt") for name in ILP}) == 1


def test_missing_shards_are_made_again_with_two_workers(tiny_run, tiny, tmp_path):
    """What a kill leaves: some shards, no end mark. One worker began, two go on; the tables are the same."""
    undisturbed, run = tiny_run[1], copy(tiny_run[1], tmp_path)
    for stage, table in (
        ("score", "scores"),
        ("refine", "refined"),
        ("supervise", "supervision"),
        ("predict", "predictions"),
    ):
        run.delete(table, f"{run.shards(table)[0]}.parquet")
        run.write_json(run.read_json("stages", f"{stage}.json") | {"state": "running"}, "stages", f"{stage}.json")
    pipeline.run(recipe.load("demo", [*tiny, "runtime.num_workers=2"]), run.root)
    assert {name: entry["worked"] for name, entry in made(run).items() if entry != made(undisturbed)[name]} == {
        "score": 4,
        "refine": 4,
        "supervise": 4,
        "predict": 4,
    }
    for table in SCHEMAS:
        assert same_rows(run, undisturbed, table), table
    assert run.read_json("metrics.json")["networks"] == undisturbed.read_json("metrics.json")["networks"]


def test_a_killed_driver_loses_nothing(tiny_run, tiny, tmp_path):
    """kill -9 as soon as the first shard of proposals is there; the second run does the others and no more."""
    run = RunDirectory.at(str(tmp_path / "run"))
    kill_driver(run, tiny, "proposals", lambda: run.shards("proposals"))
    survived = run.shards("proposals")
    assert survived
    pipeline.run(recipe.load("demo", tiny), run.root, "proposals")
    assert made(run)["proposals"]["rows"] == 12
    assert same_rows(run, tiny_run[1], "images") and same_rows(run, tiny_run[1], "proposals")


@pytest.fixture
def own_photos(tmp_path):
    """A folder of photos with a labels.csv, as a person has it: some of it broken."""
    root = tmp_path / "photos"
    root.mkdir()
    lines = ["file,labels,split"]
    for index in range(8):
        photo, mask = demo.draw_photo(0, index)
        name = f"photo {index}.jpg"
        Image.fromarray(photo).save(root / name)
        labels = ";".join(demo.CLASSES[value - 1] for value in np.unique(mask) if value)
        lines.append(f"{name},{labels},{'train' if index < 6 else 'val'}")
    whole = (root / "photo 0.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "text.jpg").write_text("this is no photo")
    (root / "<b>tiny.png").write_bytes(b"")
    lines += ["truncated.jpg,fish,train", "text.jpg,fish,train", "<b>tiny.png,fish,val"]
    lines += ["missing.jpg,fish,train", "photo 0.jpg,dragon,train"]
    (root / "labels.csv").write_text("\n".join(lines[:-1]) + "\n")
    return root


def test_bad_photos_cost_nobody_else_anything(own_photos, cluster, tmp_path):
    settings = [
        *TINY,
        "dataset.layout=folder",
        f"dataset.root={own_photos}",
        "dataset.train_split=train",
        "dataset.val_split=val",
        "dataset.limit=null",
        "hcp.pooling=roi",
        "hcp.freeze=all",
        "refinement.engine=faiss",
        "refinement.metric=nearest",
        "segmentation.networks=[SN_B]",
        "segmentation.ablation=false",
    ]
    run = RunDirectory.at(str(tmp_path / "run"))
    outcome = pipeline.run(recipe.load("demo", settings), run.root)
    assert sum(outcome.failed.values()) == 4
    failures = {
        f["image_id"]: f["error"] for stage in pipeline.STAGES for f in run.read_json("failures", f"{stage}.json")
    }
    assert failures.keys() == {"truncated", "text", "missing", "<b>tiny"}
    assert all(len(error) > 10 and "Traceback" not in error for error in failures.values()), failures
    assert len(list(run.rows("supervision"))) == 6 and len(list(run.rows("predictions"))) == 2
    page = run.read_bytes("report.html").decode()
    assert "&lt;b&gt;tiny" in page and "<b>tiny" not in page
    assert run.read_json("metrics.json")["supervision"] == {"photos": 0}


def test_unusable_input_is_refused_before_any_work(tiny, tmp_path):
    for override in ("hcp.weights=nowhere.pth", "segmentation.weights=nowhere.pth"):
        with pytest.raises(WeightsError, match=r"nowhere\.pth"):
            pipeline.run(recipe.load("demo", [*tiny, override]), str(tmp_path / "run"))
    with pytest.raises(DatasetError, match="no-such-folder"):
        pipeline.run(recipe.load("demo", [*tiny, f"dataset.root={tmp_path}/no-such-folder"]), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "images").exists()
