from pathlib import Path

import pytest

from wsseg_ray.datasets import Photo
from wsseg_ray.datasets.classes import read
from wsseg_ray.datasets.labelled import split_in
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection


def lay(root: Path, *files: str) -> DatasetSection:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return DatasetSection(layout="classes", root=str(root), train_split="train")


def test_a_folder_is_a_class(tmp_path):
    section = lay(
        tmp_path, "dogs/a.jpg", "cats/a.jpg", "cats/more/b.PNG", "cats/notes.txt", "masks/cats/a.png", ".x/c.jpg"
    )
    listing = read(section)
    assert listing.classes == ["cats", "dogs"] and listing.mask_values == [1, 2]
    found = {photo.image_id: (photo.uri, photo.labels, photo.mask_uri) for photo in listing.photos}
    assert found == {
        "cats__a": (f"{tmp_path}/cats/a.jpg", (0,), f"{tmp_path}/masks/cats/a.png"),
        "cats__more__b": (f"{tmp_path}/cats/more/b.PNG", (0,), ""),
        "dogs__a": (f"{tmp_path}/dogs/a.jpg", (1,), ""),
    }


def test_splits_are_folders_around_the_classes(tmp_path):
    listing = read(lay(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", "valid/cat/c.jpg"))
    assert list(listing.photos)[2] == Photo("valid__cat__c", f"{tmp_path}/valid/cat/c.jpg", (0,), "val")
    assert [photo.split for photo in listing.photos] == ["train", "train", "val"]


def test_a_class_may_be_called_train(tmp_path):
    listing = read(lay(tmp_path, "train/a.jpg", "bus/b.jpg"))
    assert listing.classes == ["bus", "train"]


def test_a_folder_without_photos_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no folder with photos in it; each folder is a class"):
        read(lay(tmp_path, "a.jpg", "cats/notes.txt"))


@pytest.mark.parametrize(
    ("name", "split"),
    [("train2017", "train"), ("instances_val2017", "val"), ("Test", "val"), ("training-set", "train"), ("trains", "")],
)
def test_splits_in_names(name, split):
    assert split_in(name) == split
