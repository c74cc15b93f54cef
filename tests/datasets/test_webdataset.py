import io
import json
import tarfile

import pytest

from wsseg_ray.datasets import layout_of
from wsseg_ray.datasets.place import Place
from wsseg_ray.datasets.webdataset import read
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection
from wsseg_ray.sources import read_bytes


def section(root, **more) -> DatasetSection:
    return DatasetSection(layout="webdataset", root=str(root), train_split="train", **more)


def write(file, members, mode="w"):
    with tarfile.open(file, mode) as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))


def test_samples_of_tar_files(tmp_path):
    train = {
        "a/1.jpg": b"photo 1",
        "a/1.cls": b"1",
        "a/2.JPEG": b"photo 2",
        "a/2.json": json.dumps({"labels": ["cat", "dog"], "more": 1}).encode(),
        "a/3.png": b"photo 3",
        "a/3.txt": b"cat; dog\n",
        "a/4.txt": b"no photo",
    }
    write(tmp_path / "train-000000.tar", train)
    write(tmp_path / "val-000000.tar", {"b.webp": b"photo b", "b.cls": b"cat"})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    listing = read(section(tmp_path))
    assert layout_of(Place.at(tmp_path)) == "webdataset"
    assert [(photo.image_id, photo.split, photo.labels) for photo in listing.photos] == [
        ("a__1", "train", (1,)),
        ("a__2", "train", (0, 1)),
        ("a__3", "train", (0, 1)),
        ("b", "val", (0,)),
    ]
    assert [read_bytes(photo.uri) for photo in listing.photos] == [b"photo 1", b"photo 2", b"photo 3", b"photo b"]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({}, "it has no labels"),
        ({"1.json": b"{"}, "Expecting property name"),
        ({"1.json": b"{}"}, 'has neither "label" nor "labels"'),
        ({"1.json": b'{"label": 0.5}'}, "a label must be a name or a number"),
    ],
)
def test_a_sample_without_labels_is_an_error_row(tmp_path, member, message):
    write(tmp_path / "pets.tar", {"0.jpg": b"x", "0.cls": b"cat", "1.jpg": b"x", **member})
    bad = next(photo for photo in read(section(tmp_path)).photos if photo.image_id == "1")
    assert message in bad.error and "pets.tar sample 1" in bad.error


def test_a_compressed_or_broken_tar_file_is_refused(tmp_path):
    write(tmp_path / "pets.tar", {"0.jpg": b"x", "0.cls": b"cat"}, "w:gz")
    with pytest.raises(DatasetError, match=r"pets\.tar is not an uncompressed tar file"):
        read(section(tmp_path))
