"""The notebook of docs/ runs as it stands, with fewer photos and epochs."""

import json
from pathlib import Path

import numpy as np
import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs/notebook.ipynb"


@pytest.mark.run
def test_the_notebook_ends_with_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace('Path("runs/notebook"), 60', 'Path("runs/notebook"), 12')
            exec(compile(source.replace("epochs=4", "epochs=1"), "notebook", "exec"), space)
    new, labels = space["new"], space["labels"]
    assert labels.shape == new.shape[:2] and labels.max() <= len(space["network"].classes)
    assert np.asarray(space["picture"]).shape == (new.shape[0], 2 * new.shape[1], 3)
    assert (tmp_path / "runs/notebook/report.html").is_file()
