import json
from pathlib import Path

import pytest

from wsseg_ray.datasets import Photo, list_photos
from wsseg_ray.datasets.folder import read
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection

PHOTOS = ("a.jpg", "sub/b.PNG", "c.webp", "unlabelled.jpg", "masks/a.png", "masks/sub/b.png")
CSV = "file,labels,split\na.jpg,cat; dog,train\nsub/b.PNG,cat,val\nc.webp,dog,test\n"


def lay(root: Path, labels: str, name: str = "labels.csv", **section) -> DatasetSection:
    for path in PHOTOS:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    (root / name).write_text(labels, newline="")
    return DatasetSection(**{"layout": "folder", "root": str(root), "train_split": "train", **section})


def errors(listing) -> dict[str, str]:
    return {photo.image_id: photo.error for photo in listing.photos if photo.error}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", CSV),
        ("labels.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("metadata.csv", CSV.replace("file,labels", "file_name,label")),
        (
            "labels.jsonl",
            '{"file": "a.jpg", "labels": ["cat", "dog"], "split": "train"}\n'
            '{"image": "sub/b.PNG", "label": "cat", "split": "val"}\n\n',
        ),
        (
            "labels.json",
            json.dumps(
                [
                    {"file": "a.jpg", "labels": ["cat", "dog"], "split": "train"},
                    {"file": "./sub/b.PNG", "labels": ["cat"], "split": "val"},
                    {"file": "c.webp", "labels": ["dog"], "split": "test"},
                ]
            ),
        ),
    ],
)
def test_reads_labels_splits_and_masks(tmp_path, name, text):
    listing = read(lay(tmp_path, text, name))
    assert listing.classes == ["cat", "dog"] and listing.mask_values == [1, 2]
    assert list(listing.photos) == [
        Photo("a", f"{tmp_path}/a.jpg", (0, 1), "train", f"{tmp_path}/masks/a.png"),
        Photo("sub__b", f"{tmp_path}/sub/b.PNG", (0,), "val", f"{tmp_path}/masks/sub/b.png"),
    ]


def test_without_splits_a_hash_divides_and_more_photos_move_none(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.jpg").touch()

    def splits(count: int) -> dict[str, str]:
        text = json.dumps({f"{number}.jpg": ["cat"] for number in range(count)})
        return {photo.image_id: photo.split for photo in read(lay(tmp_path, text, "labels.json")).photos}

    every = splits(200)
    assert 25 <= list(every.values()).count("val") <= 55
    assert splits(100).items() <= every.items()


def test_classes_file_names_the_mask_values(tmp_path):
    (tmp_path / "classes.txt").write_text("dog\ncow\ncat\n")
    listing = list_photos(lay(tmp_path, CSV, classes=["cat"]))
    assert listing.classes == ["cat"] and listing.mask_values == [3]
    assert {photo.image_id: photo.labels for photo in listing.photos} == {"a": (0,), "sub__b": (0,)}
    with pytest.raises(DatasetError, match="no bird; there are dog, cow, cat"):
        read(lay(tmp_path, CSV, classes=["bird"]))


@pytest.mark.parametrize(
    ("row", "image_id", "message"),
    [
        ("gone.jpg,cat,train", "gone", "gone.jpg is missing"),
        ("no/where.jpg,cat,train", "no__where", "where.jpg is missing"),
        ("a.jpg,unicorn,train", "a", "unicorn is not among the classes cat, dog"),
        ("a.jpg,cat,dog,train", "a", "separate labels by ;"),
        ("a.jpg", "a", "1 fields for the 3 columns"),
        ("a.jpg,cat,", "a", "has no split"),
        ("../a.jpg,cat,train", "..__a", "is outside the data set's folder"),
        ("/etc/a.jpg,cat,train", "__etc__a", "is outside the data set's folder"),
        ("sub\\b.PNG,cat,train", "sub\\b", "without /, "),
        ("...jpg,cat,train", "..", "cannot be an image id"),
        (".,cat,train", ".", "cannot be an image id"),
        ("masks,cat,train", "masks", "is not a photo"),
        (f"{'x' * 300}.jpg,cat,train", "x" * 300, "240 bytes"),
    ],
)
def test_bad_rows_are_error_rows(tmp_path, row, image_id, message):
    text = f"file,labels,split\nc.webp,dog,train\nsub/b.PNG,cat,val\n{row}\n"
    listing = read(lay(tmp_path, text, classes=["cat", "dog"]))
    assert list(errors(listing)) == [image_id] and message in errors(listing)[image_id]
    assert {p.split for p in listing.photos if p.error} == {"train"}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, "entry 1: labels must be a list of names"),
        ({"labels": "cat"}, "entry 1: labels must be a list of names"),
        ({"labels": [1]}, "entry 1: labels must be a list of names"),
        ({"labels": ["cat"], "split": 3}, "entry 1: split must be a name"),
    ],
)
def test_bad_json_entries_are_error_rows(tmp_path, item, message):
    items = [{"file": "a.jpg", **item}, {"file": "c.webp", "labels": ["cat"]}]
    assert message in errors(read(lay(tmp_path, json.dumps(items), "labels.json")))["a"]
    with pytest.raises(DatasetError, match=f"has 0 different labels.*{message}"):
        read(lay(tmp_path, json.dumps(items[:1]), "labels.json"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", "", "line 1: needs the columns file,labels"),
        ("labels.csv", "photo,label\na.jpg,cat\n", "line 1: needs the columns file,labels"),
        ("labels.csv", 'file,labels\na.jpg,"cat\n', "not CSV"),
        ("labels.csv", "file,labels\n,cat\n", "line 2: no file name"),
        ("labels.csv", "labels,file\ncat\n", "line 2: no file name"),
        ("labels.csv", "file,labels\na.jpg,\n", "has 0 different labels"),
        ("labels.csv", "file,labels,split\na.jpg,cat,val\n", "no photo of split 'train'; it has val"),
        ("labels.jsonl", '{"file": "a.jpg", "labels": ["cat"]}\n{', r"labels\.jsonl line 2 is not JSON"),
        ("labels.jsonl", "3\n", r'labels\.jsonl line 1: needs a "file"'),
        ("labels.json", "{", "not JSON: .*line 1"),
        ("labels.json", "[" * 100_000, "not JSON"),
        ("labels.json", "3", "needs"),
        ("labels.json", '["a.jpg"]', 'entry 1: needs a "file"'),
        ("labels.json", '{"\\ud800.jpg": ["cat"]}', "not JSON"),
    ],
)
def test_a_bad_file_of_labels_is_refused(tmp_path, name, text, message):
    with pytest.raises(DatasetError, match=message):
        read(lay(tmp_path, text, name))


def test_a_file_of_labels_that_is_no_text_is_refused(tmp_path):
    section = lay(tmp_path, CSV)
    (tmp_path / "labels.csv").write_bytes(b"file,labels\n\xff.jpg,cat\n")
    with pytest.raises(DatasetError, match=r"labels\.csv line 2"):
        read(section)


def test_needs_one_file_of_labels(tmp_path):
    with pytest.raises(DatasetError, match="neither"):
        read(DatasetSection(layout="folder", root=str(tmp_path)))
    lay(tmp_path, CSV)
    with pytest.raises(DatasetError, match="both"):
        read(lay(tmp_path, "{}", "labels.json"))


@pytest.mark.parametrize("second", ["sub__b.PNG", "./a.jpg"])
def test_two_photos_with_one_id_are_refused(tmp_path, second):
    text = f"file,labels\na.jpg,cat\nsub/b.PNG,cat\nc.webp,cat\n{second},cat\n"
    section = lay(tmp_path, text)
    (tmp_path / second).touch()
    with pytest.raises(DatasetError, match="occurs twice"):
        list_photos(section)


def test_files_in_the_folders_of_splits(tmp_path):
    """As Hugging Face's imagefolder has them."""
    for split, name in (("train", "a.jpg"), ("validation", "b.jpg")):
        (tmp_path / split).mkdir()
        (tmp_path / split / name).touch()
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps({"file_name": name, "label": "cat"}))
    photos = read(DatasetSection(layout="folder", root=str(tmp_path), train_split="train")).photos
    assert list(photos) == [
        Photo("train__a", f"{tmp_path}/train/a.jpg", (0,), "train"),
        Photo("validation__b", f"{tmp_path}/validation/b.jpg", (0,), "val"),
    ]
