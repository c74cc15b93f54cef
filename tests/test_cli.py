import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runs import copy, empty_job
from wsseg_ray import cli, pipeline, recipe, registry
from wsseg_ray.errors import DatasetError
from wsseg_ray.pipeline import Outcome
from wsseg_ray.tables import REFINED


def exit_code(monkeypatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["wsseg", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code or 0


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome({}, "r.html"), 0),
        (Outcome({"score": 2}, "r.html"), 3),
        (DatasetError("no photos"), 2),
        (RuntimeError("stage failed"), 1),
        (OSError("disk full"), 1),
    ],
)
def test_exit_codes(monkeypatch, outcome, code, capsys):
    def run(*_):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(pipeline, "run", run)
    assert exit_code(monkeypatch, "demo") == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert str(outcome) in printed.err if isinstance(outcome, Exception) else "report: r.html" in printed.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "no-such-recipe"], "no-such-recipe"),
        (["run", "demo", "--set", "dataset.limits=3"], "dataset.limits"),
        (["run", "demo", "--until", "lunch"], "train_segmenter"),
        (["report", "nowhere"], "no run"),
        (["status", "nowhere"], "no run"),
        (["replay", "nowhere", "score"], "no run"),
        (["predict", "nowhere", ".", "--out", "out"], "no photo"),
        (["export", "nowhere", "SN_B", "--out", "net"], "no run"),
        (["plan", "demo", "--photos", "1e6", "--cpus", "0"], "--cpus"),
        (["download", "cityscapes"], "voc2012"),
        (["init", "nowhere"], "no such folder"),
        (["export", "nowhere", "SN_B", "--out", "net", "--size", "300"], "--size 300: needs height and width"),
        (["init", "."], "neither a file of labels"),
        (["run"], "RECIPE"),
    ],
)
def test_a_mistake_is_unusable_input_and_named(monkeypatch, tmp_path, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert exit_code(monkeypatch, *words) == 2
    assert message in capsys.readouterr().err


def test_a_job_needs_an_absolute_run_dir(monkeypatch, capsys):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert exit_code(monkeypatch, "run", "demo", "--run-dir", "runs/demo") == 2
    assert "absolute" in capsys.readouterr().err


def test_a_recipe_for_a_folder_is_the_recipe_best(monkeypatch, tmp_path, capsys):
    folder = tmp_path / 'my "cats": a # b'
    (folder / "cats").mkdir(parents=True)
    (folder / "cats/a.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert exit_code(monkeypatch, "init", str(folder)) == 0
    assert "layout classes; run it by: wsseg run recipe.yaml" in capsys.readouterr().out
    assert recipe.load("recipe.yaml") == recipe.load(str(folder))
    assert exit_code(monkeypatch, "init", str(folder)) == 2 and "is there already" in capsys.readouterr().err


def test_recipes_are_listed(monkeypatch, capsys):
    assert exit_code(monkeypatch, "recipes") == 0
    assert "paper-voc12" in capsys.readouterr().out


def test_the_doctor_says_what_is_there_and_what_is_missing(monkeypatch, tmp_path, capsys):
    assert exit_code(monkeypatch, "doctor", "demo", "--set", "dataset.limit=20") == 0
    assert "20 training and 20 val photos" in capsys.readouterr().out
    settings = ["--set", f"dataset.root={tmp_path}/none", "--set", "hcp.weights=none.pth"]
    settings += ["--set", "proposals={backbone: vgg16, weights: gone.pth}"]
    assert exit_code(monkeypatch, "doctor", "paper-voc12", *settings, "--set", "segmentation.weights=random") == 2
    printed = capsys.readouterr().out
    assert (
        f"{tmp_path}/none" in printed
        and "none.pth" in printed
        and "gone.pth" in printed
        and printed.count("MISSING") == 3
    )


@pytest.fixture
def photo(tmp_path) -> str:
    file = tmp_path / "photo.png"
    Image.fromarray(np.full((20, 30, 3), 80, np.uint8)).save(file)
    return str(file)


def test_proposals_of_a_photo_become_a_page(monkeypatch, tmp_path, photo, capsys):
    page = tmp_path / "page.html"
    assert exit_code(monkeypatch, "proposals", photo, "--out", str(page)) == 0
    assert capsys.readouterr().out == f"page: {page}\n"
    assert "photo.png" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("none.jpg", ["--out", "page.html"], "none.jpg: cannot be read"),
        ("text.jpg", ["--out", "page.html"], "text.jpg: the file is no image"),
        ("photo.png", ["--out", "none/page.html"], "--out none/page.html"),
        ("photo.png", ["--out", "."], "--out ."),
        ("photo.png", ["--out", "page.html", "--backbone", "vgg"], "--backbone vgg: there are vgg16, timm:tf_"),
        (
            "photo.png",
            ["--out", "page.html", "--backbone", "vgg16", "--weights", "none.pth"],
            "none.pth: cannot be read",
        ),
        (
            "photo.png",
            ["--out", "page.html", "--backbone", "vgg16", "--weights", "text.jpg"],
            "text.jpg: is not a file of PyTorch weights",
        ),
    ],
)
def test_what_proposals_cannot_use_is_one_line(monkeypatch, tmp_path, photo, capsys, name, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("no photo")
    assert exit_code(monkeypatch, "proposals", name, *options) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_help_imports_nothing_heavy():
    """`wsseg --help` answers at once: torch alone takes two seconds to import."""
    code = "import sys, wsseg_ray.cli; print(*sorted({'torch', 'ray', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_the_doctor_speaks_json(monkeypatch, capsys):
    assert exit_code(monkeypatch, "doctor", "demo", "--set", "dataset.limit=20", "--json") == 0
    found = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert found["data"]["good"] and "20 training and 20 val photos" in found["data"]["text"]


def test_a_plan_is_json_too(monkeypatch, capsys):
    from wsseg_ray import plan

    cost = plan.Cost(1, 0, 0.5, 1, 1, 1000, 2)
    monkeypatch.setattr(plan, "measure", lambda recipe, sample, there: ({"images": cost}, plan.Machines(2, 0), 5))
    assert exit_code(monkeypatch, "plan", "demo", "--photos", "95", "--cpus", "4", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["photos"] == {"train": 95, "val": 5} and found["bytes"] == 100_000
    assert found["files"] == 25 + 5 * 5 and found["driver_bytes"] > 1e8 and found["requests"] > 50
    assert found["stages"] == [{"stage": "images", "seconds": 26, "machines": 4, "kind": "CPU"}]


def test_the_shell_completes_commands():
    code = {"_WSSEG_COMPLETE": "complete_bash", "COMP_WORDS": "wsseg pro", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "import sys; sys.argv = ['wsseg']; from wsseg_ray.cli import main; main()"]
    printed = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **code}).stdout
    assert printed.split() == ["proposals"]


def test_a_run_is_looked_at_from_the_command_line(monkeypatch, tiny_local, tmp_path, capsys):
    """Status, a stage computed again, labels of photos, an exported network, the report."""
    run = tiny_local[1].root
    assert exit_code(monkeypatch, "status", run, "--watch") == 0
    assert capsys.readouterr().out.count(" done ") == 8
    assert exit_code(monkeypatch, "status", run, "--json") == 0
    stages = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in stages] == ["done"] * 8 and stages[0]["photos"] == 24
    assert exit_code(monkeypatch, "replay", run, "supervise", "--photo", "demo_train_00000") == 0
    printed = capsys.readouterr().out
    assert "labels: " in printed and "supervise: 1 of 1 photos are equal to what the run has" in printed
    photo = tmp_path / "new.png"
    Image.fromarray(np.zeros((37, 90, 3), np.uint8)).save(photo)
    assert exit_code(monkeypatch, "predict", run, str(photo), "--network", "SN_B", "--out", str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "new.png").exists()
    net = tmp_path / "net.pt"
    assert exit_code(monkeypatch, "export", run, "SN_B", "--format", "state_dict", "--out", str(net)) == 0
    assert capsys.readouterr().out.endswith(f"state_dict: {net}\n") and net.exists()


def test_a_photo_that_fails_is_exit_code_3(monkeypatch, tiny_local, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no photo")
    words = ["predict", tiny_local[1].root, str(tmp_path), "--out", str(tmp_path / "out")]
    assert exit_code(monkeypatch, *words) == 1
    assert "all 1 photos failed" in capsys.readouterr().err
    Image.fromarray(np.zeros((37, 90, 3), np.uint8)).save(tmp_path / "good.png")
    assert exit_code(monkeypatch, *words) == 3
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("good: ") and printed[1].startswith("broken: failed: the file is no image")
    assert printed[2] == f"{tmp_path}/out: 1 photos, 1 failed"


def test_a_stage_that_differs_is_exit_code_1(monkeypatch, tiny_local, tmp_path, capsys):
    run = copy(tiny_local[1], tmp_path)
    shard = run.shards("refined")[0]
    rows = run.read_shard(REFINED, shard)
    rows[0].distance = rows[0].distance + 1
    run.write_shard(REFINED, shard, rows)
    assert exit_code(monkeypatch, "replay", run.root, "refine") == 1
    assert f"distance: differs in 1 photos ({rows[0].image_id}), by 1 at most" in capsys.readouterr().out


def test_every_command_is_in_the_documentation():
    text = (Path(__file__).parent.parent / "docs/commands.md").read_text()
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert {name for name in names if f"`wsseg {name}" not in text} == set()
    assert {line.split()[2].strip("`") for line in text.splitlines() if line.startswith("| `wsseg")} == names


def test_code_of_a_recipe_is_refused(tmp_path, monkeypatch):
    """`--no-plugins` before any command; without it the same recipe would be imported."""
    monkeypatch.setattr(registry, "_own_modules", True)
    (tmp_path / "theirs.py").write_text("raise SystemExit('imported')")
    (tmp_path / "theirs.yaml").write_text("extra_stages: ['theirs:STAGE']\n")
    assert exit_code(monkeypatch, "--no-plugins", "doctor", str(tmp_path / "theirs.yaml")) == 2


def test_results_of_other_settings_are_listed_and_removed(tmp_path, monkeypatch, capsys):
    job = empty_job(tmp_path)
    job.run.write_bytes(recipe.dump(job.recipe).encode(), "recipe.yaml")
    about = {"classes": ["x"], "mask_values": [1], "code": [], "replaced": {}, "results": {"scores": "1" * 16}}
    job.run.write_json(about, "run.json")
    for mark in ("1" * 16, "2" * 16):
        job.run.write_bytes(bytes(2_500_000), "scores", mark, "train-00000.parquet")
    assert exit_code(monkeypatch, "clean", job.run.root, "--yes") == 0
    assert f"scores/{'2' * 16}  2.5 MB" in capsys.readouterr().out
    assert job.run.names("scores") == ["1" * 16]
    assert exit_code(monkeypatch, "clean", job.run.root) == 0
    assert "there is nothing to remove" in capsys.readouterr().out
