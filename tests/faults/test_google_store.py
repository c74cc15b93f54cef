"""Photos, a run and its labels in Google Cloud Storage, through a server that speaks its protocol."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.test_object_store import HOSTILE, LAID
from tests.runs import measured, photos_of
from wsseg_ray import pipeline, recipe
from wsseg_ray.datasets import LAYOUTS, layout_of, list_photos
from wsseg_ray.datasets.place import Place
from wsseg_ray.errors import DatasetError
from wsseg_ray.labelling import label
from wsseg_ray.recipe import DatasetSection
from wsseg_ray.sources import read_bytes
from wsseg_ray.storage import RunDirectory, filesystem_of


@pytest.fixture(scope="module")
def place() -> Iterator[Callable[[str], str]]:
    """`name -> URI` of a place in the server's bucket."""
    pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator")
    command = [sys.executable, str(Path(__file__).with_name("google_store.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin and server.stdout
        query = f"scheme=http&endpoint_override=127.0.0.1:{int(server.stdout.readline())}&retry_limit_seconds=10"
        yield lambda name: f"gs://anonymous@runs/{name}?{query}"
        server.stdin.close()


def upload(root: str, files: dict[str, bytes]) -> str:
    filesystem, folder = filesystem_of(root)
    for path, data in files.items():
        with filesystem.open_output_stream(f"{folder}/{path}") as stream:
            stream.write(data)
    return root


def test_a_run_directory(place):
    run = RunDirectory.at(place("a/run"))
    assert not run.exists("x") and run.names() == [] and run.read_json("x") is None
    run.write_json([1], "stages", "images.json")
    assert run.names() == ["stages"] and run.read_json("stages", "images.json") == [1]
    run.delete("stages")
    run.delete("stages")
    assert not run.exists("stages")
    with pytest.raises(FileNotFoundError):
        run.read_bytes("images", "x")


@pytest.mark.parametrize("layout", LAID)
def test_every_layout(place, layout):
    root = upload(place(f"pets-{layout}"), LAID[layout])
    assert layout_of(Place.at(root)) == layout
    listing = LAYOUTS.get(layout).read(DatasetSection(root=root, classes=["cat", "dog"], train_split="train"), 0)
    found = {photo.labels: photo for photo in listing.photos}
    assert found.keys() == {(0,), (1,)}
    assert [read_bytes(found[label,].uri) for label in (0, 1)] == [b"0", b"1"]


def test_a_name_of_a_file_says_nothing_to_the_store(place):
    root = upload(place("hostile"), {f"cat/{HOSTILE}.jpg": b"photo", "cat/b.jpg": b"b"})
    listing = LAYOUTS.get("classes").read(DatasetSection(root=root, train_split="train"), 0)
    found = {photo.image_id: read_bytes(photo.uri) for photo in listing.photos}
    assert found == {f"cat__{HOSTILE}": b"photo", "cat__b": b"b"}


def test_a_folder_that_is_not_there(place):
    with pytest.raises(DatasetError, match="there is no folder gs://"):
        list_photos(DatasetSection(layout="folder", root=place("none")))


@pytest.mark.long
def test_photos_run_and_labels(place, tiny, tiny_local):
    """The numbers of the same photos on a disk."""
    files, settings = photos_of(tiny)
    root = upload(place("photos"), files)
    loaded = recipe.load("demo", [*settings, f"dataset.root={root}", "runtime.engine=local"])
    outcome = pipeline.run(loaded, place("photos-run"))
    run = RunDirectory.at(place("photos-run")).now()
    assert outcome.failed == {} and measured(run) == measured(tiny_local[1])
    labelled = label(run.root, place("photos/JPEGImages"), place("labels"), "SN_B", engine="local")
    assert labelled.labelled == 24 and labelled.failed == {}
    folder = ("predictions", "SN_B", "results", "VOC2012", "Segmentation", "comp6_val_cls")
    for name in run.names(*folder):
        assert read_bytes(place(f"labels/{name}")) == run.read_bytes(*folder, name)
