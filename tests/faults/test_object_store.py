"""A whole run on an object store, through a real S3 server, that goes away for a while in the middle."""

from __future__ import annotations

import io
import json
import tarfile
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.runs import entries, measured, photos_of, same_rows
from wsseg_ray import pipeline, recipe, sources, storage
from wsseg_ray.datasets import LAYOUTS, layout_of, list_photos
from wsseg_ray.datasets.pixels import photo_size
from wsseg_ray.datasets.place import Place
from wsseg_ray.errors import DatasetError
from wsseg_ray.labelling import label
from wsseg_ray.recipe import DatasetSection
from wsseg_ray.sources import read_bytes, tar_part
from wsseg_ray.status import lines
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import IMAGES, PROPOSALS, REFINED, SCORES, SUPERVISION, ImageRow


def test_a_run_directory_on_an_object_store(store):
    run = RunDirectory.at(store[1]("a/run"))
    assert not run.exists("x") and run.names() == [] and run.read_json("x") is None
    run.write_shard(IMAGES, "train-00000", [ImageRow("a"), ImageRow("b", "bad")])
    run.write_json([1], "stages", "images.json")
    assert run.shards("images") == ["train-00000"] and run.names() == ["images", "stages"]
    assert [row.image_id for row in run.rows(IMAGES)] == ["a", "b"]
    run.delete("images")
    run.delete("images")
    assert not run.exists("images") and run.read_json("stages", "images.json") == [1]
    with pytest.raises(FileNotFoundError):
        run.read_bytes("images", "x")


def test_the_demos_photos_lie_where_every_machine_can_read_them(store):
    place = RunDirectory.at(store[1]("demo"))
    loaded = recipe.load("demo", ["dataset.limit=6"])
    job = pipeline.prepare(loaded, place, pipeline.stages_of(loaded))
    assert len(job.listing.photos) == 12
    for photo in job.listing.photos:
        assert photo.uri.startswith("s3://") and photo_size(read_bytes(photo.uri)) and read_bytes(photo.mask_uri)


@pytest.mark.long
def test_a_run_without_ray_on_an_object_store(store, tiny, tiny_local):
    outcome = pipeline.run(recipe.load("demo", [*tiny, "runtime.engine=local"]), store[1]("local"))
    run = RunDirectory.at(store[1]("local")).now()
    assert outcome.failed == {} and "secret" not in outcome.report
    assert all(same_rows(run, tiny_local[1], table) for table in (SCORES, SUPERVISION))
    assert measured(run) == measured(tiny_local[1])


@pytest.mark.run
def test_a_store_that_loses_one_request_in_ten(store, tiny, tiny_local):
    """Reading, writing, listing and deleting: each call is repeated, and no photo is called a failure."""
    proxy, place = store
    proxy.every = 10
    try:
        outcome = pipeline.run(recipe.load("demo", [*tiny, "runtime.engine=local"]), place("lossy"), "supervise")
    finally:
        proxy.every = 0
    run = RunDirectory.at(place("lossy")).now()
    assert outcome.failed == {} and proxy.cuts > 20
    assert all(same_rows(run, tiny_local[1], table) for table in (PROPOSALS, SCORES, REFINED, SUPERVISION))


@pytest.mark.long
def test_a_run_on_an_object_store_that_goes_away_and_comes_back(store, cluster, tiny_run, tiny, monkeypatch):
    """The same tables, and no photo is called a failure: it waits, and goes on."""
    from wsseg_ray.engine.ray_runner import RayRunner

    proxy, place = store
    run = RunDirectory.at(place("run"))
    real, cut = RayRunner.map_shards, threading.Event()

    def cut_off() -> None:
        while not run.now().shards("scores"):
            cut.wait(0.05)
        proxy.close()
        cut.set()
        threading.Event().wait(3)
        proxy.open = True

    def map_and_cut(self, job, stage, work, todo):
        if stage.name == "score":
            threading.Thread(target=cut_off, daemon=True).start()
        return real(self, job, stage, work, todo)

    monkeypatch.setattr(RayRunner, "map_shards", map_and_cut)
    outcome = pipeline.run(recipe.load("demo", tiny), run.root, "supervise")
    run = run.now()
    assert cut.is_set() and outcome.failed == {}
    found = [entry for entry in entries(run).values() if entry]
    assert len(found) == 6 and all(entry["state"] == "done" and entry["failed"] == 0 for entry in found)
    for table in (IMAGES, PROPOSALS, SCORES, REFINED, SUPERVISION):
        assert same_rows(run, tiny_run[1], table), table.folder
    assert run.exists("report.html") and run.exists("hcp", "network.pt")
    for shown in (run.read_bytes("report.html").decode(), outcome.report, *lines(run)):
        assert "secret" not in shown


def as_tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return buffer.getvalue()


def as_parquet(rows: list[dict[str, object]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


INSTANCES = {
    "images": [{"id": k, "file_name": f"{k}.jpg"} for k in (0, 1)],
    "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
    "annotations": [{"image_id": k, "category_id": 7 + k} for k in (0, 1)],
}
LAID = {
    "folder": {"labels.csv": b"file,labels\n0.jpg,cat\n1.jpg,dog\n", "0.jpg": b"0", "1.jpg": b"1"},
    "classes": {"cat/0.jpg": b"0", "dog/more/1.jpg": b"1"},
    "coco": {
        "annotations/instances_all.json": json.dumps(INSTANCES).encode(),
        "images/0.jpg": b"0",
        "images/1.jpg": b"1",
    },
    "voc": {
        "JPEGImages/0.jpg": b"0",
        "JPEGImages/1.jpg": b"1",
        "ImageSets/Main/train.txt": b"0\n1\n",
        "ImageSets/Main/val.txt": b"",
        "ImageSets/Main/cat_train.txt": b"0 1\n1 -1\n",
        "ImageSets/Main/dog_train.txt": b"0 -1\n1 1\n",
    },
    "parquet": {"pets.parquet": as_parquet([{"image": b"0", "label": "cat"}, {"image": b"1", "label": "dog"}])},
    "webdataset": {"pets.tar": as_tar({"0.jpg": b"0", "0.cls": b"cat", "1.jpg": b"1", "1.txt": b"dog"})},
}


@pytest.mark.parametrize("layout", LAID)
def test_every_layout_is_read_out_of_an_object_store(upload, layout):
    root = upload(f"pets-{layout}", LAID[layout])
    assert layout_of(Place.at(root)) == layout
    listing = LAYOUTS.get(layout).read(DatasetSection(root=root, classes=["cat", "dog"], train_split="train"), 0)
    found = {photo.labels: photo for photo in listing.photos}
    assert found.keys() == {(0,), (1,)}
    assert all(photo.uri.startswith("s3://") for photo in listing.photos)
    assert [read_bytes(found[label,].uri) for label in (0, 1)] == [b"0", b"1"]


HOSTILE = "a?endpoint_override=127.0.0.1:9&scheme=http#%2e%2e"


def test_a_name_of_a_file_says_nothing_to_the_store(store, upload):
    """Read as a part of a URI, this name would send the request, with its signature, to another server."""
    root = upload("hostile", {f"cat/{HOSTILE}.jpg": b"photo", "cat/b.jpg": b"b"})
    listing = LAYOUTS.get("classes").read(DatasetSection(root=root, train_split="train"), 0)
    found = {photo.image_id: read_bytes(photo.uri) for photo in listing.photos}
    assert found == {f"cat__{HOSTILE}": b"photo", "cat__b": b"b"}
    run = RunDirectory.at(store[1]("hostile-run"))
    run.write_bytes(b"labels", "labels", f"{HOSTILE}.png")
    assert run.names("labels") == [f"{HOSTILE}.png"] and run.read_bytes("labels", f"{HOSTILE}.png") == b"labels"
    run.delete("labels", f"{HOSTILE}.png")
    assert not run.exists("labels", f"{HOSTILE}.png")


def test_a_file_in_the_store_that_no_photo_can_be_is_refused_at_once(store, upload, monkeypatch):
    """An error of a store is tried again for minutes; these are errors of a file."""
    monkeypatch.setattr(sources, "MOST_BYTES", 4)
    monkeypatch.setattr(storage, "PATIENCE", 0.0)
    place, _, query = upload("sizes", {"large.jpg": b"12345", "x.tar": b"0123456789"}).partition("?")
    with pytest.raises(OSError, match=r"more than 0$"):
        read_bytes(f"{place}/large.jpg?{query}")
    with pytest.raises(OSError, match="ends before byte 24"):
        read_bytes(tar_part(f"{place}/x.tar?{query}", 20, 4))


def test_what_was_not_written_whole_is_not_there(store):
    """Nor a part of it: a writer that fails, as the zip of the predictions may."""
    run = RunDirectory.at(store[1]("halves/run"))

    def fill(stream):
        stream.write(b"half")
        raise KeyError("surprise")

    with pytest.raises(KeyError):
        run.write_stream(fill, "results.zip")
    assert not run.exists("results.zip")
    run.write_stream(lambda stream: stream.write(b"whole"), "results.zip")
    assert run.read_bytes("results.zip") == b"whole"


def test_a_folder_that_is_not_in_the_store(store):
    with pytest.raises(DatasetError, match="there is no folder s3://runs/none"):
        list_photos(DatasetSection(layout="folder", root=store[1]("none")))


@pytest.mark.run
def test_photos_run_and_labels_in_an_object_store(store, upload, tiny, tiny_local):
    """The numbers of the same photos on a disk."""
    files, settings = photos_of(tiny)
    root = upload("photos", files)
    loaded = recipe.load("demo", [*settings, f"dataset.root={root}", "runtime.engine=local"])
    outcome = pipeline.run(loaded, store[1]("photos-run"))
    run = RunDirectory.at(store[1]("photos-run")).now()
    assert outcome.failed == {} and measured(run) == measured(tiny_local[1])
    folder = ("predictions", "SN_B", "results", "VOC2012", "Segmentation", "comp6_val_cls")
    bucket, mark, query = root.partition("?")
    labelled = label(run.root, f"{bucket}/JPEGImages{mark}{query}", store[1]("labels"), "SN_B", engine="local")
    assert labelled.labelled == 24 and labelled.failed == {}
    for name in run.names(*folder):
        assert read_bytes(store[1](f"labels/{name}")) == run.read_bytes(*folder, name)
