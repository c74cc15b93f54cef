import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsseg_ray.datasets import layout_of
from wsseg_ray.datasets.parquet import read
from wsseg_ray.datasets.place import Place
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection
from wsseg_ray.sources import read_bytes


def section(root, **more) -> DatasetSection:
    return DatasetSection(layout="parquet", root=str(root), train_split="train", **more)


def write(file, rows, features=None):
    table = pa.Table.from_pylist(rows)
    if features:
        about = json.dumps({"info": {"features": features}}).encode()
        table = table.replace_schema_metadata({"huggingface": about})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def test_as_hugging_face_writes_it(tmp_path):
    label = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    for split, many in (("train", 3), ("validation", 2)):
        rows = [
            {"image": {"bytes": f"{split}{k}".encode(), "path": f"{split}_{k}.jpg"}, "label": k % 2}
            for k in range(many)
        ]
        write(tmp_path / f"data/{split}-00000-of-00001.parquet", rows, label)
    listing = read(section(tmp_path))
    assert layout_of(Place.at(tmp_path)) == "parquet" and listing.classes == ["cat", "dog"]
    assert [(photo.image_id, photo.split, photo.labels) for photo in listing.photos] == [
        ("train_0", "train", (0,)),
        ("train_1", "train", (1,)),
        ("train_2", "train", (0,)),
        ("validation_0", "val", (0,)),
        ("validation_1", "val", (1,)),
    ]
    assert [read_bytes(photo.uri) for photo in list(listing.photos)[2:4]] == [b"train2", b"validation0"]


def test_bytes_without_names_lists_of_labels_and_a_column_of_splits(tmp_path):
    rows = [
        {"image": b"a", "labels": ["cat", "dog"], "split": "train"},
        {"image": b"b", "labels": ["cat"], "split": "val"},
    ]
    write(tmp_path / "pets.parquet", rows)
    listing = read(section(tmp_path))
    assert [(photo.image_id, photo.split, photo.labels) for photo in listing.photos] == [
        ("pets-000000", "train", (0, 1)),
        ("pets-000001", "val", (0,)),
    ]
    assert read_bytes(list(listing.photos)[1].uri) == b"b"


def test_paths_and_uris(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.jpg").write_bytes(b"a")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    rows = [
        {"file_name": name, "label": label}
        for name, label in (("sub/a.jpg", 1), ("https://host/x/b.jpg?size=1", 0), ("none.jpg", 0), ("ftp://h/c.jpg", 0))
    ]
    write(tmp_path / "pets.parquet", rows)
    photos = {photo.image_id: photo for photo in read(section(tmp_path)).photos}
    assert photos["sub__a"].uri == f"{tmp_path}/sub/a.jpg" and photos["sub__a"].labels == (1,)
    assert photos["x__b"].uri == "https://host/x/b.jpg?size=1" and not photos["x__b"].error
    assert "none.jpg is missing" in photos["none"].error
    assert "ftp://h/c.jpg cannot be read: its address must begin with one of s3://" in photos["c"].error


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"photo": b"a", "label": "cat"}], "needs a column image or file; it has photo, label"),
        ([{"image": b"a", "class": "cat"}], "needs a column labels or label"),
        ([{"image": 3, "label": "cat"}], "the column image must hold the bytes of photos"),
        ([{"image": b"a", "label": 1.5}], r"pets\.parquet row 0: a label must be a name or a number, not 1\.5"),
    ],
)
def test_a_file_without_photos_and_labels(tmp_path, rows, message):
    write(tmp_path / "pets.parquet", rows)
    with pytest.raises(DatasetError, match=message):
        read(section(tmp_path))


def test_what_is_no_parquet_file(tmp_path):
    (tmp_path / "pets.parquet").write_text("no")
    with pytest.raises(DatasetError, match=r"pets\.parquet is not a Parquet file that can be read"):
        read(section(tmp_path))
