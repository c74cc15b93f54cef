"""The package as `pip` gets it: built from what git keeps, complete, and accepted by the index's own check."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED = (
    "wsseg_ray/py.typed",
    "wsseg_ray/recipes/best.yaml",
    "wsseg_ray/report/page.html",
    "wsseg_ray/serve/page.html",
    "wsseg_ray/proposals/",
)


@pytest.mark.run
def test_the_package_is_whole(tmp_path):
    kept = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if kept.returncode:
        pytest.skip("needs the project's git repository")
    for name in filter(None, kept.stdout.decode().split("\0")):
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    build = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(tmp_path / "source"),
    ]
    subprocess.run(build, check=True, capture_output=True)
    files = sorted((tmp_path / "dist").iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True, capture_output=True)
    with zipfile.ZipFile(files[0]) as wheel:
        names = wheel.namelist()
        entries = next(name for name in names if name.endswith("entry_points.txt"))
        assert "wsseg = wsseg_ray.cli:main" in wheel.read(entries).decode()
    assert all(any(name.startswith(needed) for name in names) for needed in NEEDED)
    assert any(name.endswith(".npz") for name in names) and not any(name.startswith("tests") for name in names)
