"""A run: its stages in order, what depends on what, what is done already.

What a stage writes lies in a folder with the fingerprint of all that makes it: its part of the recipe, its inputs'
fingerprints, the user's own code, and the version of the tables. When a recipe runs again, a stage whose folder is
there is skipped or, where it was cut off, goes on. After a change of the recipe the stages that depend on it write to
other folders. The old ones stay, and serve again when the change is taken back; `cleaning` removes them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsseg_ray import datasets, summary
from wsseg_ray.choices import settle
from wsseg_ray.cleaning import unused
from wsseg_ray.console import chatter_to, say
from wsseg_ray.datasets.spool import Photos
from wsseg_ray.engine.resources import check_names
from wsseg_ray.engine.shards import TRIES, counts
from wsseg_ray.engine.stage import Job, Runner, Stage, as_seen_by, open_run, with_replacements
from wsseg_ray.errors import RecipeError
from wsseg_ray.lease import held
from wsseg_ray.recipe import Recipe, check_variants, dump, fingerprint, leaves, refuse_password
from wsseg_ray.registry import folders, own_code
from wsseg_ray.stages import STAGES
from wsseg_ray.stages.segmenters import most_rounds
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import Table

FORMAT = 8  # of the tables; a new one re-runs everything
FAILED = "failures.json"  # of a result: the photos that failed


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the failed rows by stage, and where its report is."""

    failed: dict[str, int]
    report: str | None


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, in order: the registered ones, rounds repeated, and the user's own behind theirs.

    Raises RecipeError where a variant cannot be imported, or a stage of the user's own follows none.
    """
    check_variants(recipe)
    registered = [stage for stage in STAGES.variants() if stage.needed(recipe)]
    repeated = [stage for stage in registered if stage.again]
    found: list[Stage] = []
    for stage in registered:
        if stage.again is None:
            found.append(stage)
        elif stage is repeated[0]:
            for round_ in range(most_rounds(recipe) + 1):
                found += [each.again(round_) for each in repeated if each.again and round_ >= each.first_round]
    for name in recipe.extra_stages:
        own = STAGES.get(name)
        place = next((i for i, stage in enumerate(found) if stage.name == own.after), None)
        if place is None:
            raise RecipeError(f"extra_stages: {name} follows '{own.after}', which is no stage of this recipe")
        found.insert(place + 1, own)
    return found


def run(recipe: Recipe, run_dir: str, until: str | None = None) -> Outcome:
    """Run a recipe, or go on with it, in a run directory.

    Arguments:
        recipe: what to do.
        run_dir: a path, or a URI of an object store.
        until: the last stage to run; None: all, and the report.
    Raises RecipeError, DatasetError, WeightsError or OSError before any work where the input cannot be used;
    RuntimeError where a stage fails as a whole.
    """
    refuse_password("--run-dir", run_dir)
    place = RunDirectory.at(run_dir)
    recipe, choices = settle(recipe, (place.read_json("run.json") or {}).get("choices"))
    for choice in choices:
        say(f"{choice.key}: {choice.value} ({choice.reason})")
    stages = stages_of(recipe)
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        raise RecipeError(f"--until {until}: no such stage; there are {', '.join(names)}")
    job = with_results(prepare(recipe, place, stages), stages)
    with held(place):
        place.write_bytes(dump(recipe).encode(), "recipe.yaml")
        about: dict[str, Any] = {"classes": job.classes, "mask_values": job.listing.mask_values}
        about["stages"] = {stage.name: stage.writes for stage in stages}
        about["choices"] = {choice.key: choice.value for choice in choices}
        about |= {"code": job.code, "replaced": job.replaced, "results": job.run.results}
        place.write_json(about, "run.json")
        _tell_of_others(job.run)
        wanted = stages[: names.index(until) + 1] if until else stages
        work_through(job, wanted, stages)
        metrics, written = summary.conclude(job, wanted)
    return Outcome({name: entry["failed"] for name, entry in metrics["stages"].items() if entry["failed"]}, written)


def with_results(job: Job, stages: Sequence[Stage]) -> Job:
    """The job, with the folders of its stages' results."""
    marks = fingerprints(job, stages)
    return replace(job, run=replace(job.run, results={stage.writes: marks[stage.name] for stage in stages}))


def _tell_of_others(run: RunDirectory) -> None:
    others = dict.fromkeys(folder for folder, _ in unused(run))
    if others:
        say(f"kept: results of other settings in {', '.join(others)}; `wsseg clean` removes them")
    if RunDirectory(run.root).exists("stages"):  # until format 6
        say("results of an older version of wsseg_ray lie in the run directory too; they are not used")


def work_through(job: Job, wanted: Sequence[Stage], stages: Sequence[Stage]) -> None:
    """Do what the wanted ones of all stages of a run have left to do."""
    with _runner(job, wanted) as runner:
        for stage in wanted:
            _run_stage(as_seen_by(stage, job, stages), runner, stage)


def write_report(run_dir: str) -> str:
    """Write `metrics.json` and `report.html` of a run again, from its tables; returns where the report is.

    Raises RecipeError where the folder is no run.
    """
    job = open_run(run_dir)
    done = [stage for stage in stages_of(job.recipe) if (job.run.entry(stage.writes) or {}).get("state") == "done"]
    return summary.conclude(job, done)[1]


def prepare(recipe: Recipe, place: RunDirectory, stages: Sequence[Stage]) -> Job:
    """List the data set, and look for what each stage needs: everything that can be wrong before any work."""
    check_names(recipe, list(dict.fromkeys([*STAGES.names, *(stage.resources for stage in stages)])))
    drawn = place.uri("demo") if place.is_local else tempfile.mkdtemp()
    listing = datasets.list_photos(recipe.dataset, drawn, recipe.seed)
    if datasets.LAYOUTS.get(recipe.dataset.layout).draws and not place.is_local:
        listing = replace(listing, photos=Photos(_uploaded(photo, place) for photo in listing.photos))
    for stage in stages:
        for finding in stage.check(recipe, listing):
            if finding.problem is not None:
                raise finding.problem
            if finding.note:
                say(finding.note)
    return with_replacements(Job(place, recipe, listing, folders()), stages)


def owned(recipe: Recipe, stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """The keys of the recipe that belong to each stage, with their values.

    A key belongs to the stage that names it most precisely: "section.key" before "section". The keys of `runtime` and
    `extra_stages` belong to none: they say how a recipe runs, and which stages there are.
    Raises RecipeError where two stages name a key equally, which is a mistake of a stage.
    """
    claims: dict[str, str] = {}
    for stage in stages:
        for claim in stage.settings(recipe):
            if claim in claims:
                raise RecipeError(f"the stages {claims[claim]} and {stage.name} both name {claim} in their settings")
            claims[claim] = stage.name
    found: dict[str, dict[str, Any]] = {stage.name: {} for stage in stages}
    for key, value in leaves(recipe):
        parts = key.split(".")
        owner = next((claims[c] for n in range(len(parts), 0, -1) if (c := ".".join(parts[:n])) in claims), None)
        if owner is not None:
            found[owner][key] = value
    return found


def fingerprints(job: Job, stages: Sequence[Stage]) -> dict[str, str]:
    """The fingerprint of what makes each stage's result, by the stage's name: its keys of the recipe, code of the
    user's own that they or the stage name, and the fingerprints of what it reads."""
    settings = owned(job.recipe, stages)
    own_stages = {STAGES.get(path).name: path for path in job.recipe.extra_stages}
    found: dict[str, str] = {}
    for place, stage in enumerate(stages):
        seen = as_seen_by(stage, job, stages)
        inputs = [found[one.name] for one in stages[:place] if _is_read(seen, stage, one.writes)]
        named = [own_stages.get(stage.name), *settings[stage.name].values()]
        code = [digest for value in named for digest in own_code(value)]
        found[stage.name] = fingerprint(FORMAT, stage.name, settings[stage.name], stage.also(seen), inputs, code)
    return found


def _is_read(job: Job, stage: Stage, folder: str) -> bool:
    """Whether a stage reads a folder: a table, one in its place, or one round of it."""
    return any(folder in (name, job.replaced.get(name)) or folder.rpartition("-")[0] == name for name in stage.reads)


def _uploaded(photo: datasets.Photo, place: RunDirectory) -> datasets.Photo:
    """A drawn photo and its mask as they lie in a run on an object store, where every machine can read them."""
    return replace(photo, uri=_upload(photo.uri, place, "uri"), mask_uri=_upload(photo.mask_uri, place, "mask_uri"))


def _upload(file: str, place: RunDirectory, kind: str) -> str:
    if not file:
        return file
    where = ("demo", kind, Path(file).name)
    if not place.exists(*where):
        place.write_bytes(Path(file).read_bytes(), *where)
    return place.uri(*where)


def _run_stage(job: Job, runner: Runner, stage: Stage) -> None:
    """Skip, resume or start a stage."""
    entry = job.run.entry(stage.writes)
    if entry is None:
        entry = {"state": "running"}
        job.run.write_entry(entry, stage.writes)
    start = time.monotonic()
    if entry["state"] != "done":
        runner.ask_for(job, stage)
    worked = stage.do(job, runner)
    job.run.delete(TRIES, stage.name)
    if worked == 0 and entry["state"] == "done":
        say(f"{stage.name:<16} done before")
    else:
        _finish(job, stage, entry, worked, start)
    job.run.write_json(job.run.read_json(stage.writes, FAILED), "failures", f"{stage.name}.json")


def _finish(job: Job, stage: Stage, entry: dict[str, Any], worked: int, start: float) -> None:
    """Write down that a stage is done, and what failed."""
    rows, failures = _count(job, stage.name, stage.table) if stage.table else (worked, [])
    job.run.write_json(failures, stage.writes, FAILED)
    # Seconds and rows a second speak of the session that finished the stage: what a kill interrupted is not known.
    entry |= {"state": "done", "rows": rows, "failed": len(failures), "worked": worked}
    entry["seconds"] = time.monotonic() - start
    status = job.run.read_json("status.json") or {}
    is_own = status.get("stage") == stage.name
    entry["busy"] = (status.get("busy_share") or 0) * status["seconds"] if is_own else 0.0
    entry["task"] = status["task"] if is_own else 0.0
    job.run.write_entry(entry, stage.writes)


def _count(job: Job, name: str, table: Table[Any]) -> tuple[int, list[dict[str, str]]]:
    """The number of rows of a stage's table, and the photos that failed. Reads the shards that have any."""
    found = counts(job, table)
    failures = [
        {"image_id": row.image_id, "stage": name, "error": row.error}
        for shard, (_, failed) in found.items()
        if failed
        for row in job.run.read_shard(table, shard, ["image_id", "error"])
        if row.error
    ]
    return sum(rows for rows, _ in found.values()), failures


@contextmanager
def _runner(job: Job, stages: Sequence[Stage]) -> Iterator[Runner]:
    """The runner that the recipe names. What Ray prints goes to `logs/ray.log` of the run."""
    if job.recipe.runtime.engine == "local":
        from wsseg_ray.engine.local import LocalRunner

        runner: Runner = LocalRunner()
        runner.check(job.recipe, stages)
        yield runner
        return
    from wsseg_ray.engine.ray_runner import ray_runner

    log = Path(job.run.uri("logs") if job.run.is_local else tempfile.mkdtemp()) / "ray.log"
    with chatter_to(log), ray_runner(log) as runner:
        runner.check(job.recipe, stages)
        yield runner
