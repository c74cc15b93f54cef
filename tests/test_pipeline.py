"""Whole runs on tiny photos: what they leave, what depends on what, and that nothing is lost by disturbing them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY
from tests.engine.test_training import scalars
from tests.runs import TABLES, by_name, copy, cut_off, entries, equal, measured, ran, same_rows, same_weights
from wsseg_ray import pipeline, recipe
from wsseg_ray.datasets import demo
from wsseg_ray.engine.stage import open_run
from wsseg_ray.errors import DatasetError, RecipeError, WeightsError
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, PREDICTIONS, PROPOSALS, SCORES, SUPERVISION

LOCAL = "runtime.engine=local"
STAGES = ["images", "proposals", "train_hcp", "score", "refine", "supervise", "train_segmenter", "predict"]


def names(*settings: str) -> list[str]:
    return [stage.name for stage in pipeline.stages_of(recipe.load("demo", list(settings)))]


# ---- which stages


def test_stages_of_a_recipe():
    assert names() == STAGES


def test_rounds_are_stages():
    """relabel and train_segmenter once per round, behind the first training."""
    before, rounds = STAGES[:7], ["relabel-1", "train_segmenter-1"]
    assert names("segmentation.rounds=1") == [*before, *rounds, "predict"]
    assert names("segmentation.networks=[SN_B, CAM]") == [*before, *rounds, "predict"], "CAM has a round of its own"
    both = names("segmentation.networks=[SN_B, CAM]", "segmentation.rounds=1")
    assert both == [*before, *rounds, "relabel-2", "train_segmenter-2", "predict"]


# ---- what a run leaves


def test_a_run_leaves_what_the_design_says(tiny_local):
    outcome, run = tiny_local
    assert outcome.failed == {} and outcome.report == run.uri("report.html")
    metrics = run.read_json("metrics.json")
    single = sum(len(row.labels) == 1 for row in run.rows(IMAGES) if row.split == "train")
    assert metrics["data"] == {"train": 12, "val": 12, "single_label": single, "train_with_masks": 12}
    assert list(metrics["stages"]) == STAGES
    assert all(entry["failed"] == 0 and entry["rows"] > 0 for entry in metrics["stages"].values())
    assert all(entry["state"] == "done" for entry in entries(run).values())
    busy = {name for name, entry in entries(run).items() if 0 < entry["busy"] < entry["seconds"]}
    assert busy == {"train_hcp", "score", "train_segmenter", "predict"}
    assert set(metrics["networks"]) == {"AN_A", "SN_B", "FULL", "AN_A_unrefined", "SN_B_unrefined"}
    for network in metrics["networks"].values():
        assert 0 <= network["val"]["miou"] <= 100 and set(network["val"]["iou_crf"]) == {"background", *demo.CLASSES}
    assert metrics["supervision"]["photos"] == 12
    assert set(metrics["supervision"]["ablation"]) == {"none", "nearest", "farthest", "norm", "score", "area", "random"}
    in_use = metrics["supervision"]["ablation"][metrics["supervision"]["keep"]]
    assert in_use["localization_miou"] == metrics["supervision"]["localization_miou"]
    counts = {IMAGES: 24, PROPOSALS: 12, SCORES: 24, SUPERVISION: 12, PREDICTIONS: 12}
    for table, count in counts.items():
        rows = list(run.rows(table))
        assert len(rows) == count == len({row.image_id for row in rows}), table
    about = run.read_json("run.json")
    assert about["classes"] == demo.CLASSES and list(about["stages"]) == STAGES and about["replaced"] == {}
    assert not run.names("tries", "score")


def test_losses_are_there_for_tensorboard(tiny_local):
    run = tiny_local[1]
    networks = run.read_json("metrics.json")["networks"]
    assert set(run.names("logs", "tensorboard")) == {"HCP", *networks}
    for name, network in networks.items():
        assert scalars(run, name) == [("loss", 1, pytest.approx(network["log"][0]["loss"]))]
    log = run.read_json("hcp", "log.json")["log"]
    assert scalars(run, "HCP") == [(f"loss/{entry['step']}", 1, pytest.approx(entry["loss"])) for entry in log]


def test_with_ray_and_without_the_numbers_are_the_same(tiny_run, tiny_local):
    """Tables, weights and metrics; on Ray each stage ran on other processes than the one before."""
    with_ray, without = tiny_run[1], tiny_local[1]
    for table in TABLES:
        assert same_rows(with_ray, without, table), table.folder
    assert same_weights(with_ray, without, "hcp", "network.pt")
    for name in ("AN_A", "SN_B", "FULL", "AN_A_unrefined", "SN_B_unrefined"):
        assert same_weights(with_ray, without, "segmenters", name, "network.pt"), name
    assert measured(with_ray) == measured(without)
    assert {name: entry["rows"] for name, entry in entries(with_ray).items()} == {
        name: entry["rows"] for name, entry in entries(without).items()
    }


# ---- run again


def test_the_same_recipe_again_does_nothing(tiny_local, tiny, tmp_path, capfd):
    run = copy(tiny_local[1], tmp_path)
    before = entries(run)
    run = ran(recipe.load("demo", [*tiny, LOCAL]), run)
    assert entries(run) == before
    assert capfd.readouterr().err.count("done before") == len(STAGES)


def test_what_a_run_runs_on_reruns_nothing(tiny_local, tiny, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    before = entries(run)
    settings = [LOCAL, "runtime.stages.score.cpus=1", "runtime.num_workers=3", "runtime.checkpoint_minutes=1"]
    run = ran(recipe.load("demo", [*tiny, *settings]), run)
    assert entries(run) == before


def test_a_changed_key_reruns_what_depends_on_it_alone(tiny_local, tiny, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    before = entries(run)
    run = ran(recipe.load("demo", [*tiny, LOCAL, "refinement.keep=farthest"]), run, "supervise")
    after = entries(run)
    assert [name for name in after if after[name] and after[name] != before[name]] == ["refine", "supervise"]
    supervision = run.read_json("metrics.json")["supervision"]
    assert supervision["keep"] == "farthest"
    assert supervision["localization_miou"] == supervision["ablation"]["farthest"]["localization_miou"]
    assert list(run.read_json("metrics.json")["stages"]) == STAGES[:6], "what is later may be stale"


def test_missing_shards_are_made_again(tiny_local, tiny, tmp_path):
    """What a kill leaves: some shards, no end mark. The tables are the same afterwards."""
    undisturbed, run = tiny_local[1], copy(tiny_local[1], tmp_path)
    stages = {"score": "scores", "refine": "refined", "supervise": "supervision", "predict": "predictions"}
    for stage, table in stages.items():
        cut_off(run, stage, f"{table}/{run.shards(table)[0]}.parquet")
    before = entries(undisturbed)
    run = ran(recipe.load("demo", [*tiny, LOCAL]), run)
    assert {name: e["worked"] for name, e in entries(run).items() if e != before[name]} == dict.fromkeys(stages, 4)
    assert all(same_rows(run, undisturbed, table) for table in TABLES)
    assert measured(run) == measured(undisturbed)


def test_missing_shards_are_made_again_with_two_workers(tiny_run, tiny, tmp_path):
    """One worker of Ray began, two go on."""
    undisturbed, run = tiny_run[1], copy(tiny_run[1], tmp_path)
    stages = {"score": "scores", "refine": "refined", "supervise": "supervision", "predict": "predictions"}
    for stage, table in stages.items():
        cut_off(run, stage, *(f"{table}/{shard}.parquet" for shard in run.shards(table)[:2]))
    run = ran(recipe.load("demo", [*tiny, "runtime.num_workers=2"]), run)
    assert all(same_rows(run, undisturbed, table) for table in TABLES)
    assert measured(run) == measured(undisturbed)


def test_a_run_begun_without_ray_goes_on_with_it(tiny_local, tiny_run, tiny, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    cut_off(run, "score", f"scores/{run.shards('scores')[0]}.parquet")
    run = ran(recipe.load("demo", tiny), run, "score")
    assert entries(run)["score"]["worked"] == 4 and same_rows(run, tiny_local[1], SCORES)


def test_a_run_stops_where_it_is_told_to(tiny, tmp_path):
    outcome = pipeline.run(recipe.load("demo", [*tiny, LOCAL]), str(tmp_path), "images")
    assert list(json.loads((tmp_path / "metrics.json").read_text())["stages"]) == ["images"]
    assert outcome.failed == {} and not (tmp_path / "proposals").exists()
    with pytest.raises(RecipeError, match=r"--until lunch: no such stage; there are images, .* predict"):
        pipeline.run(recipe.load("demo", [*tiny, LOCAL]), str(tmp_path), "lunch")


def test_a_report_can_be_written_again(tiny_local, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    metrics = run.read_json("metrics.json")
    run.delete("metrics.json")
    run.write_bytes(b"old", "report.html")
    assert pipeline.write_report(run.root) == run.uri("report.html")
    assert run.read_json("metrics.json") == metrics and b"SN_B" in run.read_bytes("report.html")


# ---- what cannot be used


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
    lines += ["missing.jpg,fish,train"]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def test_bad_photos_cost_nobody_else_anything(own_photos, tmp_path):
    settings = [
        *TINY,
        LOCAL,
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
    outcome = pipeline.run(recipe.load("demo", settings), str(tmp_path / "run"))
    run = RunDirectory.at(str(tmp_path / "run")).now()
    assert sum(outcome.failed.values()) == 4
    failures = {f["image_id"]: f["error"] for stage in STAGES for f in run.read_json("failures", f"{stage}.json")}
    assert failures.keys() == {"truncated", "text", "missing", "<b>tiny"}
    assert all(len(error) > 10 and "Traceback" not in error for error in failures.values()), failures
    assert len(list(run.rows(SUPERVISION))) == 6 and len(list(run.rows(PREDICTIONS))) == 2
    page = run.read_bytes("report.html").decode()
    assert "&lt;b&gt;tiny" in page and "<b>tiny" not in page
    assert run.read_json("metrics.json")["supervision"] == {"photos": 0}


def test_unusable_input_is_refused_before_any_work(tiny, tmp_path):
    for override in ("hcp.weights=nowhere.pth", "segmentation.weights=nowhere.pth"):
        with pytest.raises(WeightsError, match=r"nowhere\.pth"):
            pipeline.run(recipe.load("demo", [*tiny, override]), str(tmp_path / "run"))
    with pytest.raises(DatasetError, match="no-such-folder"):
        pipeline.run(recipe.load("demo", [*tiny, f"dataset.root={tmp_path}/no-such-folder"]), str(tmp_path / "run"))
    for override in ("proposals.source=mcg", "refinement={engine: moments, metric: cosine}", "hcp.freeze=6"):
        with pytest.raises(RecipeError):
            pipeline.run(recipe.load("demo", [*tiny, override]), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "images").exists()


# ---- a stage of the user's own

KEEP_ALL = '''
"""Keeps every candidate after all."""
import numpy as np
from dataclasses import dataclass
from wsseg_ray.engine.stage import Stage, Step, Work
from wsseg_ray.tables import REFINED, RefinedRow, Table

KEPT = Table("kept_all", RefinedRow)

def keep_all(job, row):
    row.kept = np.ones(len(row.kept), bool)
    return row

def work(job):
    return Work(KEPT, rows, (Step(keep_all, RefinedRow),))

def rows(job, shard):
    return list(job.run.read_good(job.table(REFINED), shard).values())

STAGE = Stage(
    name="keep_all", reads=("refined",), writes="kept_all", table=KEPT, work=work,
    after="refine", replaces=REPLACES, metrics=lambda job: {"kept": {"photos": len(job.run.shards("kept_all"))}},
)
'''


def own_module(folder: Path, name: str, text: str) -> str:
    """A recipe's extra stage, in a module beside a recipe file that extends the demo."""
    (folder / f"{name}.py").write_text(text)
    return f"extra_stages=[{name}:STAGE]"


def beside_a_recipe(folder: Path, settings: list[str]) -> recipe.Recipe:
    """The recipe as a person would run it: a file, with the module beside it."""
    (folder / "own.yaml").write_text(recipe.dump(recipe.load("demo", [s for s in settings if "extra_" not in s])))
    return recipe.load(str(folder / "own.yaml"), [s for s in settings if "extra_" in s])


def test_a_stage_of_ones_own_runs_behind_another(tiny_local, tiny, tmp_path):
    """It reads and writes tables, has metrics and failures, and is found in the run by whoever opens it."""
    run = copy(tiny_local[1], tmp_path)
    text = KEEP_ALL.replace("REPLACES", '""')
    loaded = beside_a_recipe(tmp_path, [*tiny, LOCAL, own_module(tmp_path, "watching", text)])
    assert [stage.name for stage in pipeline.stages_of(loaded)][4:6] == ["refine", "keep_all"]
    run = ran(loaded, run, "keep_all")
    assert len(run.shards("kept_all")) == 3 and entries(run)["keep_all"]["rows"] == 12
    assert run.read_json("metrics.json")["kept"] == {"photos": 3}
    assert (
        list(run.read_json("run.json")["stages"])[5] == "keep_all"
        and str(tmp_path) in run.read_json("run.json")["code"]
    )
    assert open_run(run).recipe.extra_stages == ["watching:STAGE"]
    before = entries(run)
    run = ran(loaded, run, "supervise")
    assert entries(run) == before, "nobody reads it, so nothing is done again"


def test_a_stage_of_ones_own_replaces_a_table(tiny_local, tiny, tmp_path):
    """`supervise` reads `kept_all` in the place of `refined`: it makes the maps of no refinement."""
    run = copy(tiny_local[1], tmp_path)
    text = KEEP_ALL.replace("REPLACES", '"refined"')
    loaded = beside_a_recipe(tmp_path, [*tiny, LOCAL, own_module(tmp_path, "keeping", text)])
    run = ran(loaded, run, "supervise")
    assert run.read_json("run.json")["replaced"] == {"refined": "kept_all"}
    assert same_rows(run, tiny_local[1], pipeline.Table("refined", TABLES[3].row)), "it stays as it is"
    before = by_name(tiny_local[1], SUPERVISION)
    for image_id, row in by_name(run, SUPERVISION).items():
        assert np.array_equal(row.maps, before[image_id].maps_unrefined)
        assert np.array_equal(row.maps_unrefined, before[image_id].maps_unrefined)
    run = ran(recipe.load("demo", [*tiny, LOCAL]), run, "supervise")
    assert all(equal(row, before[image_id]) for image_id, row in by_name(run, SUPERVISION).items()), "and back again"


def test_a_change_of_ones_own_code_is_another_result(tiny, tmp_path):
    text = KEEP_ALL.replace("REPLACES", '""')
    loaded = beside_a_recipe(tmp_path, [*tiny, LOCAL, own_module(tmp_path, "growing", text)])
    stages = pipeline.stages_of(loaded)
    job = pipeline.prepare(loaded, RunDirectory.at(str(tmp_path / "run")), stages)
    before = pipeline.fingerprints(job, stages)
    (tmp_path / "growing.py").write_text(f"{text}# more\n")
    after = pipeline.fingerprints(job, stages)
    assert {name for name in after if after[name] != before[name]} == {"keep_all"}


def test_a_stage_that_follows_none_is_refused(tmp_path, monkeypatch):
    text = KEEP_ALL.replace("REPLACES", '""').replace('after="refine"', 'after="lunch"')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match=r"extra_stages: late:STAGE follows 'lunch', which is no stage"):
        pipeline.stages_of(recipe.load("demo", [own_module(tmp_path, "late", text)]))


def test_on_ray_the_workers_find_a_stage_of_ones_own(tiny_run, tiny, tmp_path):
    run = copy(tiny_run[1], tmp_path)
    text = KEEP_ALL.replace("REPLACES", '"refined"')
    loaded = beside_a_recipe(tmp_path, [*tiny, own_module(tmp_path, "elsewhere", text)])
    run = ran(loaded, run, "keep_all")
    assert all(row.kept.all() and row.is_good for row in run.rows(pipeline.Table("kept_all", TABLES[3].row)))


def test_a_copy_is_a_run(tiny_local, tmp_path):
    """A run can be moved: everything in it is found where it is now."""
    shutil.copytree(tiny_local[1].root, tmp_path / "moved")
    assert open_run(str(tmp_path / "moved")).run.root == str(tmp_path / "moved")
