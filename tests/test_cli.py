import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from wsseg_ray import cli, pipeline
from wsseg_ray.errors import DatasetError
from wsseg_ray.pipeline import Outcome


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
        (["download", "cityscapes"], "voc2012"),
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


def test_recipes_are_listed(monkeypatch, capsys):
    assert exit_code(monkeypatch, "recipes") == 0
    assert "paper-voc12" in capsys.readouterr().out


def test_the_doctor_says_what_is_there_and_what_is_missing(monkeypatch, tmp_path, capsys):
    assert exit_code(monkeypatch, "doctor", "demo") == 0
    assert "288 training and 80 val photos" in capsys.readouterr().out
    settings = ["--set", f"dataset.root={tmp_path}/none", "--set", "hcp.weights=none.pth"]
    settings += ["--set", "proposals.weights=gone.pth"]
    assert exit_code(monkeypatch, "doctor", "paper-voc12", *settings, "--set", "segmentation.weights=null") == 2
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
        ("photo.png", ["--out", "page.html", "--weights", "none.pth"], "none.pth: cannot be read"),
        ("photo.png", ["--out", "page.html", "--weights", "text.jpg"], "text.jpg: is not a file of PyTorch weights"),
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
