"""Labels of new photos by a trained network, as a small run of its own: on Ray, or in one process.

The folder of the labels holds that run in `.wsseg`: its stages are `images` and `label`, with shards, progress and
failure rows as those of a training run. So a labelling that was stopped goes on where it stopped.
"""

# ruff: noqa: RUF009 (a column is a dataclass field with its type)

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from wsseg_ray import network_file, pipeline
from wsseg_ray.datasets import Listing, Photo, id_problem
from wsseg_ray.datasets.labelled import PHOTO_SUFFIXES
from wsseg_ray.datasets.pixels import photo_size
from wsseg_ray.datasets.place import Place
from wsseg_ray.engine.stage import Job, Stage, Step, Work
from wsseg_ray.errors import DatasetError, RecipeError
from wsseg_ray.lease import held
from wsseg_ray.network_file import Trained
from wsseg_ray.networks import labels_of, open_network, probabilities_of
from wsseg_ray.outputs import OUTPUTS, Labelled, Output
from wsseg_ray.recipe import refuse_password, validate
from wsseg_ray.registry import folders
from wsseg_ray.segmentation.network import SegmentationNetwork
from wsseg_ray.stages import STAGES
from wsseg_ray.stages.predictor import Predictor, ViewsRow, unpacked
from wsseg_ray.stages.rows import SeenRow, add_photo, file_of
from wsseg_ray.stages.segmenters import network_named
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, Row, Table, blobs, texts

WORK = ".wsseg"  # the run, in the folder of the labels
NETWORK = f"network{network_file.SUFFIX}"


@dataclass
class LabelRow(Row):
    """Table `labels`: a new photo that has been labelled."""

    seen: list[str] = texts("(n,) the classes that it shows")
    part: list[bytes] = blobs("(1,) its part of the one file; empty where each photo has a file")


LABELS = Table("labels", LabelRow)


class Outcome(NamedTuple):
    """What came of a labelling.

    Arguments:
        labelled: number of photos.
        failed: why each of the others has no labels, by the photo's name.
        written: the file that has the labels of all photos, or the folder with a file for each.
    """

    labelled: int
    failed: dict[str, str]
    written: str


def label(
    run: str,
    photos: str,
    out: str,
    name: str | None = None,
    form: str = "png",
    engine: str | None = None,
    tell: Callable[[str, Sequence[str]], None] = lambda photo, seen: None,
) -> Outcome:
    """Label every pixel of new photos, or go on with it where it stopped.

    Where a photo of the folder was changed since, all are labelled again; where a file of labels is gone, it is made
    again.

    A photo is shrunk as the run's were, goes through the network (`inference.photo_views`) on an actor, then in a task
    through the CRF if the run has one, and its labels are enlarged to the photo's size.

    Arguments:
        run: a run directory, or a network's file; see `networks.open_network`.
        photos: a photo, or a folder, whose photos are taken, without those of its folders; a path or a URI.
        out: the folder to write to, a path or a URI; it is made.
        name: of the network, see `open_network`.
        form: a name of `outputs.OUTPUTS`: `png` is a palette PNG per photo, named like the photo.
        engine: `ray` or `local`; None: `ray` where RAY_ADDRESS says that a cluster is there.
        tell: called at the end with the name of each labelled photo and the classes that it shows.
    Raises DatasetError where there is no photo or two would be written to one file, RecipeError without the network or
    the form, RuntimeError where all photos fail to be labelled.
    """
    refuse_password("--out", out)
    refuse_password("PHOTOS", photos)
    output = _output(form)
    found = _photos(photos, output)
    trained = open_network(run, name)
    place = RunDirectory.at(out)
    work = RunDirectory.at(place.uri(WORK))
    engine = engine or ("ray" if os.environ.get("RAY_ADDRESS") else "local")
    known = trained.recipe.model_dump()
    recipe = validate({**known, "runtime": {**known["runtime"], "engine": engine}})
    listing = Listing(trained.classes, list(range(1, len(trained.classes) + 1)), found)
    images, changes = STAGES.get(IMAGES.folder), Place.at(photos).changes()
    dated = replace(images, also=lambda job: [*images.also(job), changes])
    stages = [dated, _stage(trained, place.root, form)]
    job = pipeline.with_results(Job(work, recipe, listing, folders()), stages)
    with held(work):
        _forget_others(job)
        _forget_missing(job, place, output)
        work.write_bytes(network_file.as_bytes(trained, {}), NETWORK)
        pipeline.work_through(job, stages, stages)
    failed = _failures(job.run)
    parts, labelled = [], 0
    for row in job.run.rows(LABELS):
        if row.is_good:
            labelled += 1
            parts += row.part
            tell(row.image_id, row.seen)
    if output.join:
        place.write_bytes(output.join(parts, trained.classes), output.file)
    return Outcome(labelled, failed, place.uri(output.file) if output.file else place.root)


def _output(form: str) -> Output:
    try:
        return OUTPUTS.get(form)
    except ValueError as error:
        raise RecipeError(f"--format: {error}") from error


def _photos(photos: str, output: Output) -> list[Photo]:
    """The photos of a place. Raises DatasetError where there is none, or two would be written to one file."""
    place = Place.at(photos)
    entries = place.entries()
    names = sorted(name for name in entries if name.lower().endswith(PHOTO_SUFFIXES) and not entries[name])
    files = [place / name for name in names]
    if not entries and place.is_file():
        files = [place]
    elif not entries and not place.is_dir():
        raise DatasetError(f"{place}: there is no such photo or folder")
    if not files:
        raise DatasetError(f"{place}: holds no photo ({', '.join(PHOTO_SUFFIXES)})")
    stems: dict[str, Place] = {}
    for file in files:
        if file.stem in stems:
            target = f"{file.stem}{output.suffix or '.png'}"
            raise DatasetError(f"{place}: more than one photo is called {file.stem}; all would get the file {target}")
        stems[file.stem] = file
    return [Photo(stem, file.uri, (), "val", error=id_problem(stem)) for stem, file in stems.items()]


def _stage(trained: Trained, out: str, form: str) -> Stage:
    about = trained.about.name
    views = trained.recipe.prediction.model_dump()

    def work(job: Job) -> Work[LabelRow]:
        steps = (
            Step(add_photo, SeenRow),
            Step(partial(Predictor, _load, views), ViewsRow, actor=True),
            Step(partial(_finish, about, out, form), LabelRow),
        )
        return Work(LABELS, _rows, steps)

    return Stage(
        name="label",
        reads=(IMAGES.folder,),
        writes=LABELS.folder,
        settings=lambda recipe: ["prediction", "crf", "proposals.count"],
        also=lambda job: [about, form, network_file.digest(trained)],
        table=LABELS,
        work=work,
        workers=lambda recipe: "actors",
        split="val",
    )


def _forget_others(job: Job) -> None:
    """Delete what the table says of another labelling in the same folder: this one writes over its files."""
    before = {"results": job.run.results}
    if job.run.read_json("run.json") != before:
        RunDirectory(job.run.root).delete(LABELS.folder)
        job.run.write_json(before, "run.json")


def _forget_missing(job: Job, place: RunDirectory, output: Output) -> None:
    """Delete shards of the table whose photos have lost their files, so that they are labelled again."""
    if output.file:  # then the table has all that goes into the one file
        return
    there = set(place.names())
    for shard in job.run.shards(LABELS.folder):
        if any(f"{name}{output.suffix}" not in there for name in job.run.read_good(LABELS, shard, [])):
            job.run.delete(LABELS.folder, f"{shard}.parquet")
            job.run.write_entry({"state": "running"}, LABELS.folder)


def _load(job: Job) -> list[SegmentationNetwork]:
    return [network_file.read(job.run.read_bytes(NETWORK), NETWORK).network]


def _rows(job: Job, shard: str) -> list[SeenRow]:
    return [SeenRow(**vars(row)) for row in job.run.read_good(IMAGES, shard).values()]


def _finish(name: str, out: str, form: str, job: Job, row: ViewsRow) -> LabelRow:
    """The labels of a photo at its full size, in its file or as its part of the one file."""
    about, views = network_named(job.recipe, name), unpacked(row)[0]
    data, output = file_of(row), OUTPUTS.get(form)
    labels = labels_of(job.recipe, about, row.photo, views, photo_size(data))
    shares = partial(probabilities_of, job.recipe, about, row.photo, views)
    encoded = output.encode(Labelled(Place(row.uri).name, data, labels, job.classes, shares))
    if not output.file:
        RunDirectory(out).write_bytes(encoded, f"{row.image_id}{output.suffix}")
    seen = [one for value, one in enumerate(job.classes, 1) if (labels == value).any()]
    return LabelRow(seen=seen, part=[encoded] if output.file else [])


def _failures(work: RunDirectory) -> dict[str, str]:
    """Why photos have no labels, by name."""
    tables: tuple[Table[Any], ...] = (IMAGES, LABELS)
    rows = (row for table in tables for row in work.rows(table, ["image_id", "error"]))
    return {row.image_id: row.error for row in rows if row.error}
