import json
from pathlib import Path

import pytest

from wsseg_ray.datasets import Photo
from wsseg_ray.datasets.coco import read
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection


def coco(photos: dict[str, list[int]]) -> str:
    images = [{"id": number, "file_name": name} for number, name in enumerate(photos)]
    objects = [
        {"image_id": number, "category_id": label} for number, labels in enumerate(photos.values()) for label in labels
    ]
    categories = [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]
    return json.dumps({"images": images, "annotations": objects, "categories": categories})


def lay(root: Path, files: dict[str, str]) -> DatasetSection:
    for file, text in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return DatasetSection(layout="coco", root=str(root), train_split="train")


def test_the_labels_are_the_categories_of_the_objects(tmp_path):
    train, val = coco({"a.jpg": [7, 3, 7], "b.jpg": [3]}), coco({"c.jpg": [7], "empty.jpg": []})
    files = {"annotations/instances_train2017.json": train, "annotations/instances_val2017.json": val}
    section = lay(tmp_path, files | {"train2017/a.jpg": "", "val2017/c.jpg": "", "val2017/empty.jpg": ""})
    listing = read(section)
    assert listing.classes == ["cat", "dog"]
    assert list(listing.photos) == [
        Photo("train2017__a", f"{tmp_path}/train2017/a.jpg", (0, 1), "train"),
        Photo(
            "train2017__b",
            f"{tmp_path}/train2017/b.jpg",
            (),
            "train",
            error=f"the photo {tmp_path}/train2017/b.jpg is missing",
        ),
        Photo("val2017__c", f"{tmp_path}/val2017/c.jpg", (0,), "val"),
        Photo("val2017__empty", f"{tmp_path}/val2017/empty.jpg", (), "val"),
    ]


@pytest.mark.parametrize("folder", ["images/all", "images", "."])
def test_photos_lie_in_one_of_several_folders(tmp_path, folder):
    files = {"annotations/instances.json": "", "annotations/instances_all.json": coco({"a.jpg": [3]})}
    (photo,) = read(lay(tmp_path, files | {f"{folder}/a.jpg": ""})).photos
    assert Path(photo.uri) == tmp_path / folder / "a.jpg" and not photo.error


def test_roboflow_writes_a_file_beside_the_photos(tmp_path):
    files = {f"{split}/_annotations.coco.json": coco({f"{split}.jpg": [3]}) for split in ("train", "valid")}
    listing = read(lay(tmp_path, files | {"train/train.jpg": "", "valid/valid.jpg": ""}))
    assert [(photo.image_id, photo.split) for photo in listing.photos] == [
        ("train__train", "train"),
        ("valid__valid", "val"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not COCO's"),
        ('{"images": []}', "is not COCO's: no 'categories'; it needs images, annotations and categories"),
        (coco({"a.jpg": [9]}), "is not COCO's: no 9"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, text, message):
    with pytest.raises(DatasetError, match=message):
        read(lay(tmp_path, {"annotations/instances_train.json": text}))


def test_a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"no annotations/instances_\*\.json"):
        read(lay(tmp_path, {"annotations/captions_train.json": "{}"}))
