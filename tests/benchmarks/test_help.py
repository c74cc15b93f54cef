"""Every benchmark still imports and says how it is run."""

import importlib
import sys
from pathlib import Path

import pytest

import benchmarks.kills as one_of_them

FILES = Path(one_of_them.__file__).parent.glob("*.py")
NAMES = sorted(file.stem for file in FILES if "\ndef main()" in file.read_text())


@pytest.mark.ray  # some import it
@pytest.mark.parametrize("name", NAMES)
def test_it_says_how_it_is_run(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0 and module.__doc__.splitlines()[0] in capsys.readouterr().out
