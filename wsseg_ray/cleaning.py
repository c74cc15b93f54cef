"""Results that a run's recipe no longer uses: they stay until someone asks to remove them."""

from __future__ import annotations

import re

from wsseg_ray.lease import held
from wsseg_ray.storage import RunDirectory

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def unused(run: RunDirectory) -> list[tuple[str, str]]:
    """The folder and the fingerprint of every result that is not of the run's recipe, as it ran last.

    Costs a listing per folder of the run.
    """
    plain = RunDirectory(run.root)
    return [
        (folder, name)
        for folder in plain.names()
        for name in (plain.names(folder) if not plain.is_file(folder) else [])
        if _FINGERPRINT.fullmatch(name) and name != run.results.get(folder)
    ]


def remove(run: RunDirectory, results: list[tuple[str, str]]) -> None:
    """Delete results that `unused` has found. Raises RecipeError where a run is at work in the directory."""
    with held(run):
        for folder, name in results:
            if name == run.now().results.get(folder):
                continue  # a run has gone back to it in the meantime
            RunDirectory(run.root).delete(folder, name)
