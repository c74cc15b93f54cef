from pathlib import Path

import pytest

from wsseg_ray.datasets import Photo, list_photos
from wsseg_ray.datasets.voc import read, read_annotation
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import VOC_CLASSES, DatasetSection

CAT, DOG = VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")
FILES = {
    "JPEGImages/a.jpg": "",
    "JPEGImages/b.jpg": "",
    "JPEGImages/c.jpg": "",
    "JPEGImages/v.jpg": "",
    "SegmentationClass/a.png": "",
    "SegmentationClass/b.png": "",
    "SegmentationClassAug/a.png": "",
    "ImageSets/Main/cat_train.txt": "a  1\nb -1\nc  0\n",
    "ImageSets/Main/dog_train.txt": "a  1\r\nb  1\r\n\r\nc -1\r\n",
    "ImageSets/Main/cat_val.txt": "v  1\n",
}


def lay(root: Path, files: dict[str, str], **section) -> DatasetSection:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, newline="")
    return DatasetSection(**{"root": str(root), "train_split": "train", **section})


def xml(*objects: tuple[str, int]) -> str:
    items = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><part><name>head</name></part></object>"
        for name, difficult in objects
    )
    return f"<annotation>{items}</annotation>"


def labels(listing) -> dict[str, tuple[int, ...]]:
    return {photo.image_id: photo.labels for photo in listing.photos}


def errors(listing) -> dict[str, str]:
    return {photo.image_id: photo.error for photo in listing.photos if photo.error}


def test_class_files_and_masks(tmp_path):
    listing = read(lay(tmp_path, FILES))
    assert listing.classes == VOC_CLASSES and listing.mask_values == list(range(1, 21))
    assert list(listing.photos) == [
        Photo("a", f"{tmp_path}/JPEGImages/a.jpg", (CAT, DOG), "train", f"{tmp_path}/SegmentationClassAug/a.png"),
        Photo("b", f"{tmp_path}/JPEGImages/b.jpg", (DOG,), "train", f"{tmp_path}/SegmentationClass/b.png"),
        Photo("c", f"{tmp_path}/JPEGImages/c.jpg", (), "train"),
        Photo("v", f"{tmp_path}/JPEGImages/v.jpg", (CAT,), "val"),
    ]


def test_a_choice_of_classes_keeps_their_mask_values(tmp_path):
    listing = list_photos(lay(tmp_path, FILES, classes=["dog", "cat"]))
    assert listing.classes == ["dog", "cat"] and listing.mask_values == [DOG + 1, CAT + 1]
    assert labels(listing) == {"a": (0, 1), "b": (0,), "v": (1,)}
    listing = list_photos(lay(tmp_path, FILES, classes=["cat"]))
    assert labels(listing) == {"a": (0,), "v": (0,)}


def test_class_files_of_classes_not_chosen_still_name_the_photos(tmp_path):
    files = FILES | {"ImageSets/Main/cat_train.txt": "a 1\n", "ImageSets/Main/dog_train.txt": "b 1\na perhaps\n"}
    listing = read(lay(tmp_path, files | {"ImageSets/Segmentation/train.txt": "a\nb\n"}, classes=["cat"]))
    assert labels(listing) == {"a": (0,), "b": (), "v": (0,)} and not errors(listing)


def test_own_classes(tmp_path):
    section = lay(tmp_path, FILES | {"classes.txt": "dog\ncat\n"})
    assert read(section).mask_values == [1, 2]
    with pytest.raises(DatasetError, match=r"dataset\.classes: there is no cow; there are dog, cat"):
        read(section.model_copy(update={"classes": ["cow"]}))


def test_ids_of_the_segmentation_list_win(tmp_path):
    listing = read(lay(tmp_path, FILES | {"ImageSets/Segmentation/train.txt": "b\n"}))
    assert labels(listing) == {"b": (DOG,), "v": (CAT,)}


def test_annotations_serve_photos_that_no_class_file_names(tmp_path):
    files = FILES | {
        "ImageSets/Segmentation/train.txt": "a\nd\n",
        "JPEGImages/d.jpg": "",
        "JPEGImages/w.jpg": "",
        "Annotations/a.xml": xml(("cow", 0)),
        "Annotations/d.xml": xml(("dog", 1), ("cat", 1), ("cat", 0)),
        "Annotations/w.xml": xml(("dog", 0)),
        "ImageSets/Main/other.txt": "w\n",
    }
    listing = read(lay(tmp_path, files, val_split="other"))
    assert labels(listing) == {"a": (CAT, DOG), "d": (CAT,), "w": (DOG,)} and not errors(listing)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (None, "d.xml is missing"),
        ("<annotation>", "d.xml cannot be read"),
        ("", "d.xml cannot be read"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "d.xml cannot be read"),
        ("<annotation><object/></annotation>", "object without a name"),
        (xml(("unicorn", 0)), "unicorn is not among the classes"),
    ],
)
def test_bad_annotations_are_error_rows(tmp_path, annotation, message):
    files = FILES | {"ImageSets/Segmentation/train.txt": "a\nd\n", "JPEGImages/d.jpg": ""}
    listing = read(lay(tmp_path, files | ({"Annotations/d.xml": annotation} if annotation is not None else {})))
    assert list(errors(listing)) == ["d"] and message in errors(listing)["d"]


def test_unlisted_photo_or_malformed_line_is_an_error_row(tmp_path):
    files = FILES | {
        "ImageSets/Main/cat_train.txt": "a\nb yes\nc 1\ngone 1\nmy photo 1\n",
        "JPEGImages/my photo.jpg": "",
    }
    listing = read(lay(tmp_path, files))
    assert labels(listing) == {"a": (), "b": (), "c": (CAT,), "gone": (), "my photo": (CAT,), "v": (CAT,)}
    assert "cat_train.txt line 1: 'a' is not" in errors(listing)["a"]
    assert "cat_train.txt line 2: 'b yes' is not" in errors(listing)["b"]
    assert "gone.jpg is missing" in errors(listing)["gone"]


def test_a_malformed_line_is_told_even_outside_the_segmentation_list(tmp_path):
    files = FILES | {"ImageSets/Segmentation/train.txt": "a\n", "ImageSets/Main/cat_train.txt": "a 1\nb\n"}
    assert list(errors(read(lay(tmp_path, files)))) == ["b"]


@pytest.mark.parametrize("image_id", ["../x", "..", "a\\b", "/etc/passwd", "a\0b"])
def test_hostile_ids_are_error_rows_without_a_path(tmp_path, image_id):
    listing = read(lay(tmp_path, FILES | {"ImageSets/Segmentation/train.txt": f"a\n{image_id}\n"}))
    hostile = list(listing.photos)[1]
    assert hostile.image_id == image_id and "cannot be an image id" in hostile.error
    assert hostile.uri == hostile.mask_uri == ""


def test_twice_in_one_list_or_in_both_splits(tmp_path):
    with pytest.raises(DatasetError, match="'a' occurs twice"):
        list_photos(lay(tmp_path, FILES | {"ImageSets/Segmentation/train.txt": "a\na\n"}))
    with pytest.raises(DatasetError, match="'a' occurs twice"):
        list_photos(lay(tmp_path, FILES, val_split="train"))
    with pytest.raises(DatasetError, match=r"cat_val\.txt line 2: 'v' occurs twice"):
        read(lay(tmp_path, FILES | {"ImageSets/Main/cat_val.txt": "v 1\nv -1\n"}))


def test_missing_folders_and_splits_say_what_is_there(tmp_path):
    section = lay(tmp_path / "VOC2012", FILES | {"ImageSets/Segmentation/train_aug.txt": "a\n"})
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere"):
        read(section.model_copy(update={"root": str(tmp_path / "nowhere")}))
    with pytest.raises(DatasetError, match=r"JPEGImages.*it has VOC2012"):
        read(section.model_copy(update={"root": str(tmp_path)}))
    with pytest.raises(DatasetError, match=r"dataset\.val_split: .*no split 'test'; there are train, train_aug, val\."):
        read(section.model_copy(update={"val_split": "test"}))
    with pytest.raises(DatasetError, match=r"no split '\.\./Main/cat_train'"):
        read(section.model_copy(update={"train_split": "../Main/cat_train"}))


def test_a_list_that_is_no_text_is_named_with_its_line(tmp_path):
    section = lay(tmp_path, FILES)
    (tmp_path / "ImageSets/Main/cat_train.txt").write_bytes(b"a 1\n\xff\xfe 1\n")
    with pytest.raises(DatasetError, match=r"cat_train\.txt line 2"):
        read(section)


def test_annotation(tmp_path):
    (tmp_path / "a.xml").write_text(xml(("dog", 1), ("cat", 1), ("cat", 0)))
    assert read_annotation(tmp_path / "a.xml") == {"dog": False, "cat": True}
