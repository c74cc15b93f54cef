"""The whole way, stage by stage: what depends on what, what is done already, what a run leaves behind.

A stage that is done leaves `stages/<name>.json` in the run: the fingerprint of what made it (its part of the recipe
and its inputs' fingerprints), its rows and seconds. Run again, a stage whose fingerprint is the same is skipped or,
where it was cut off, goes on; one whose fingerprint changed is deleted and starts again, and so do those that need it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray

from wsseg_ray import datasets
from wsseg_ray.console import chatter_to, say
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import Recipe, dump, fingerprint
from wsseg_ray.stages import (
    evaluate,
    images,
    predict,
    proposals,
    refine,
    report,
    resources,
    score,
    segmenters,
    shards,
    supervise,
    train_hcp,
    train_segmenter,
)
from wsseg_ray.stages.job import Job, open_run
from wsseg_ray.tables import SCHEMAS, RunDirectory

FORMAT = 3  # of the tables; a new one re-runs everything

HCP_SELECTION = {"hypotheses", "clustered_boxes", "min_area", "max_aspect"}
HCP_CANDIDATES = {"threshold", "min_candidates"}
PCA = {"pca_energy", "pca_dims", "pca_photos", "pca_candidates"}


@dataclass(frozen=True)
class Stage:
    """A stage: how it runs, its part of the recipe, what it needs, and the folder that it fills."""

    run: Callable[[Job], int]
    settings: Callable[[Job], Any]
    needs: tuple[str, ...]
    folder: str


def _part(section: Any, include: set[str] | None = None, exclude: set[str] | None = None) -> dict[str, Any]:
    return section.model_dump(include=include, exclude=exclude)


STAGES: dict[str, Stage] = {
    "images": Stage(
        images.run,
        lambda job: [job.recipe.dataset.max_side, asdict(job.listing)],
        (),
        images.TABLE,
    ),
    "proposals": Stage(
        proposals.run,
        lambda job: [_part(job.recipe.proposals), _part(job.recipe.hcp, HCP_SELECTION), job.recipe.seed],
        ("images",),
        proposals.TABLE,
    ),
    "train_hcp": Stage(
        train_hcp.run,
        lambda job: [
            # The region rounds learn from candidates.
            _part(job.recipe.hcp, exclude=HCP_SELECTION | (set() if job.recipe.hcp.region_rounds else HCP_CANDIDATES)),
            job.recipe.seed,
        ],
        ("proposals",),
        train_hcp.FOLDER,
    ),
    "score": Stage(
        score.run,
        lambda job: [_part(job.recipe.hcp, HCP_CANDIDATES), _part(job.recipe.refinement, PCA)],
        ("train_hcp",),
        score.TABLE,
    ),
    "refine": Stage(
        refine.run,
        lambda job: [_part(job.recipe.refinement, exclude=PCA), job.recipe.seed],
        ("score",),
        refine.TABLE,
    ),
    "supervise": Stage(supervise.run, lambda job: _part(job.recipe.supervision), ("refine",), supervise.TABLE),
    "train_segmenter": Stage(
        train_segmenter.run,
        lambda job: [
            _part(job.recipe.segmentation, exclude={"networks", "ablation"}),
            _part(job.recipe.crf) if job.recipe.segmentation.rounds else None,
            job.recipe.seed,
        ],
        ("supervise",),
        segmenters.FOLDER,
    ),
    "predict": Stage(
        predict.run,
        lambda job: [_part(job.recipe.crf), _part(job.recipe.prediction), segmenters.networks(job.recipe)],
        ("train_segmenter",),
        predict.TABLE,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the failed rows by stage, and where its report is."""

    failed: dict[str, int]
    report: str | None


def run(recipe: Recipe, run_dir: str, until: str | None = None) -> Outcome:
    """Run a recipe, or go on with it, in a run directory.

    Arguments:
        recipe: what to do.
        run_dir: a path, or a URI of an object store.
        until: the last stage to run; None: all, and the report.
    Raises DatasetError, WeightsError or OSError before any work where the input cannot be used; RuntimeError where a
    stage fails as a whole.
    """
    place = RunDirectory.at(run_dir)
    job = prepare(recipe, place)
    place.write_bytes(dump(recipe).encode(), "recipe.yaml")
    place.write_json({"classes": job.classes, "mask_values": job.listing.mask_values}, "classes.json")
    names = list(STAGES)[: list(STAGES).index(until) + 1] if until else list(STAGES)
    with _ray(place):
        resources.check(recipe, names)
        marks: dict[str, str] = {}
        for name in names:
            stage = STAGES[name]
            marks[name] = _run_stage(job, name, stage, [marks[need] for need in stage.needs])
    metrics, written = _conclude(job, list(marks))
    return Outcome({name: entry["failed"] for name, entry in metrics["stages"].items() if entry["failed"]}, written)


def write_report(run_dir: str) -> str:
    """Write `metrics.json` and `report.html` of a run again, from its tables; returns where the report is.

    Raises RecipeError where the folder is no run.
    """
    job = open_run(run_dir)
    entries = {name: job.run.read_json("stages", f"{name}.json") or {} for name in STAGES}
    return _conclude(job, [name for name, entry in entries.items() if entry.get("state") == "done"])[1]


def _conclude(job: Job, stages: list[str]) -> tuple[dict[str, Any], str]:
    metrics = evaluate.metrics(job, stages)
    job.run.write_json(metrics, "metrics.json")
    return metrics, report.write(job, metrics)


def prepare(recipe: Recipe, place: RunDirectory) -> Job:
    """List the data set and look whether weights can be read: everything that can be wrong before any work."""
    drawn = place.uri("demo") if place.is_local else tempfile.mkdtemp()
    listing = datasets.list_photos(recipe.dataset, drawn, recipe.seed)
    if recipe.dataset.layout == "demo" and not place.is_local:
        listing = replace(listing, photos=[_uploaded(photo, place) for photo in listing.photos])
    if not any(photo.split == "train" and not photo.error for photo in listing.photos):
        raise DatasetError("no training photo can be used: every one failed or has none of the classes")
    proposals.check_weights(recipe)
    train_hcp.check_weights(recipe)
    segmenters.check_weights(recipe)
    return Job(place, recipe, listing)


def _uploaded(photo: datasets.Photo, place: RunDirectory) -> datasets.Photo:
    """A drawn photo and its mask as they lie in a run on an object store, where every machine can read them."""
    uris = {}
    for kind, file in (("uri", photo.uri), ("mask_uri", photo.mask_uri)):
        where = ("demo", kind, Path(file).name)
        if not place.exists(*where):
            place.write_bytes(Path(file).read_bytes(), *where)
        uris[kind] = place.uri(*where)
    return replace(photo, **uris)


def _run_stage(job: Job, name: str, stage: Stage, inputs: list[str]) -> str:
    """Skip, resume or start a stage; returns its fingerprint."""
    mark = fingerprint(FORMAT, name, stage.settings(job), inputs)
    entry = job.run.read_json("stages", f"{name}.json")
    if not entry or entry["fingerprint"] != mark:
        job.run.delete(stage.folder)
        entry = {"fingerprint": mark, "state": "running"}
        job.run.write_json(entry, "stages", f"{name}.json")
    start = time.monotonic()
    if entry["state"] != "done":
        resources.ask_for(job.recipe, name)
    worked = stage.run(job)
    job.run.delete(shards.TRIES, name)
    if worked == 0 and entry["state"] == "done":
        say(f"{name:<16} done before")
        return mark
    rows, failures = _count(job, name, stage.folder) if stage.folder in SCHEMAS else (worked, [])
    job.run.write_json(failures, "failures", f"{name}.json")
    # Seconds and rows a second speak of the session that finished the stage: what a kill interrupted is not known.
    entry |= {"state": "done", "rows": rows, "failed": len(failures), "worked": worked}
    entry["seconds"] = time.monotonic() - start
    status = job.run.read_json("status.json") or {}
    entry["busy"] = (status.get("busy_share") or 0) * status["seconds"] if status.get("stage") == name else 0.0
    job.run.write_json(entry, "stages", f"{name}.json")
    return mark


def _count(job: Job, name: str, table: str) -> tuple[int, list[dict[str, str]]]:
    rows, failures = 0, []
    for row in job.run.rows(table, ["image_id", "error"]):
        rows += 1
        if row["error"]:
            failures.append({"image_id": row["image_id"], "stage": name, "error": row["error"]})
    return rows, failures


@contextmanager
def _ray(place: RunDirectory) -> Iterator[None]:
    """Ray for the time of a run: the cluster that RAY_ADDRESS or the machine names, else one of our own.

    What Ray prints goes to `logs/ray.log` of the run.
    """
    log = Path(place.uri("logs") if place.is_local else tempfile.mkdtemp()) / "ray.log"
    with chatter_to(log):
        started = not ray.is_initialized()
        # Threads that wait for each other must not spin: on two cores that Ray shares, spinning is ten times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # How often Ray Train looks whether its workers are done; its two seconds make every training three longer.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        if started:
            context = ray.init(log_to_driver=False)
            cpus, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
            say(f"Ray: {cpus} CPUs, {gpus} GPUs, dashboard {context.dashboard_url or 'off'}; its log is {log}")
        try:
            yield
        finally:
            resources.ask_for_nothing()
            if started:
                ray.shutdown()
