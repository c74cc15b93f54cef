"""The steps of the Dockerfile, without Docker: what it copies is enough to build, install and start the project."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from wsseg_ray.recipe import shipped

ROOT = Path(__file__).parent.parent


def steps() -> list[tuple[str, str]]:
    """Each instruction and its arguments."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")]


@pytest.mark.run
def test_the_image_has_all_that_is_needed(tmp_path):
    """The libraries are those of this environment; the project itself is built and installed anew."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    (tmp_path / "work").mkdir()
    bin_ = tmp_path / "env" / "bin"
    pip = f"{sys.executable} -m pip --python {bin_ / 'python'} install --no-deps --no-build-isolation --quiet"
    here = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "PYTHONPATH": sysconfig.get_path("purelib")}
    printed = ""
    for name, arguments in steps():
        if name == "COPY":
            *sources, target = [word for word in arguments.split() if not word.startswith("--")]
            for source in sources:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, tmp_path / "work" / target)
        if name == "RUN":
            command = arguments.replace("pip install --no-cache-dir", pip).replace("${EXTRA}", "cpu")
            done = subprocess.run(command, shell=True, cwd=tmp_path / "work", env=here, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            printed = done.stdout
    assert all(recipe in printed for recipe in shipped())
    code = "import wsseg_ray; print(wsseg_ray.__file__)"
    at = subprocess.run([bin_ / "python", "-c", code], cwd="/", env=here, capture_output=True, text=True, check=True)
    assert at.stdout.startswith(str(tmp_path / "env")), "the installed package, not this checkout"
    installed = Path(at.stdout.strip()).parent
    for file in (
        "py.typed",
        "serve/page.html",
        "recipes/best.yaml",
        "report/page.html",
        "proposals/perceptrons/plain.npz",
    ):
        assert (installed / file).exists()


def test_only_what_is_copied_goes_to_docker():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {word for name, words in steps() if name == "COPY" for word in words.split()[1:-1]}
    assert copied == kept
