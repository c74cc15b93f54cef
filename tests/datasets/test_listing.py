from dataclasses import replace

import pytest

from wsseg_ray import datasets
from wsseg_ray.datasets import Layout, Listing, Photo, demo, list_photos, voc
from wsseg_ray.datasets.place import Place
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection

SECTION = DatasetSection(root="anywhere")


def photo(image_id: str, split: str = "train", labels: tuple[int, ...] = (0,), error: str = "") -> Photo:
    return Photo(image_id, f"/{image_id}.jpg", labels, split, error=error)


def serve(monkeypatch, *photos: Photo) -> None:
    layout = Layout(lambda section, seed: Listing(["cat"], [1], list(photos)))
    monkeypatch.setattr(voc, "LAYOUT", layout)


def test_sorts_and_drops_photos_without_a_wanted_class(monkeypatch):
    serve(
        monkeypatch, photo("b", "val"), photo("z"), photo("c", labels=()), photo("a"), photo("d", "val", (), "damaged")
    )
    assert [p.image_id for p in list_photos(SECTION).photos] == ["a", "z", "b", "d"]


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, "0"), (3, "036"), (4, "0257"), (10, "0123456789"), (99, "0123456789")]
)
def test_limit_is_evenly_spread(monkeypatch, limit, expected):
    serve(monkeypatch, *(photo(str(i)) for i in reversed(range(10))), photo("v", "val"))
    listing = list_photos(SECTION.model_copy(update={"limit": limit}))
    assert "".join(p.image_id for p in listing.photos if p.split == "train") == expected
    assert [p.image_id for p in listing.photos if p.split == "val"] == ["v"]


def test_refuses_an_id_that_occurs_twice(monkeypatch):
    serve(monkeypatch, photo("a"), photo("a", "val", ()))
    with pytest.raises(DatasetError, match="'a' occurs twice"):
        list_photos(SECTION)


def test_files_that_differ_in_their_suffix_keep_it(monkeypatch):
    """Neither of them costs the other photos anything, nor the run."""
    files = [replace(photo("a"), uri=f"/photos/a.{suffix}") for suffix in ("jpg", "png")]
    serve(monkeypatch, *files, photo("b"))
    assert [p.image_id for p in list_photos(SECTION).photos] == ["a_jpg", "a_png", "b"]


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        ((photo("a", error="it is gone"),), "it is gone"),
        ((photo("a", labels=()), photo("b", "val")), "none is labelled"),
    ],
)
def test_refuses_a_data_set_without_a_photo_to_train_on(monkeypatch, photos, message):
    serve(monkeypatch, *photos)
    with pytest.raises(DatasetError, match=message):
        list_photos(SECTION)


def test_a_layout_that_reads_needs_a_root():
    with pytest.raises(DatasetError, match=r"dataset\.root: layout 'folder' needs the data set's folder"):
        list_photos(DatasetSection(layout="folder"))


def test_demo_is_drawn_and_read(monkeypatch, tmp_path):
    def draw(folder, seed, limit):
        assert (seed, limit) == (3, 1)
        for path, text in {
            "classes.txt": "fish\nleaf\n",
            "JPEGImages/a.jpg": "",
            "JPEGImages/b.jpg": "",
            "SegmentationClass/b.png": "",
            "ImageSets/Main/fish_train_aug.txt": "a  1\n",
            "ImageSets/Main/leaf_val.txt": "b  1\n",
        }.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)

    monkeypatch.setattr(demo, "draw", draw)
    listing = list_photos(DatasetSection(layout="demo", limit=1), str(tmp_path), 3)
    assert listing.classes == ["fish", "leaf"] and listing.mask_values == [1, 2]
    assert list(listing.photos) == [
        Photo("a", str(tmp_path / "JPEGImages/a.jpg"), (0,), "train"),
        Photo("b", str(tmp_path / "JPEGImages/b.jpg"), (1,), "val", str(tmp_path / "SegmentationClass/b.png")),
    ]
    with pytest.raises(DatasetError, match="folder to draw into"):
        list_photos(DatasetSection(layout="demo"))


@pytest.mark.parametrize("text", ["cat\n\ndog\n", "cat\ncat\n", "\n", "".join(f"c{i}\n" for i in range(255))])
def test_refuses_a_bad_classes_file(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DatasetError, match=r"classes\.txt"):
        datasets.read_classes(Place.at(tmp_path))


def test_classes_file_of_another_encoding_is_named_with_its_line(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"cat\r\n\xe4pfel\r\n")
    with pytest.raises(DatasetError, match=r"classes\.txt line 2: not UTF-8"):
        datasets.read_classes(Place.at(tmp_path))
    (tmp_path / "classes.txt").write_bytes("\ufeffcat\r\näpfel\r\n".encode())
    assert datasets.read_classes(Place.at(tmp_path)) == ["cat", "äpfel"]


@pytest.mark.parametrize("image_id", ["", ".", "..", "../x", "a/b", "a\\b", "a\0b", "ä" * 121])
def test_ids_that_cannot_name_a_file(image_id):
    assert datasets.id_problem(image_id)


@pytest.mark.parametrize("image_id", ["2007_000063", "my photo", "Äpfel 写真", "...", "ä" * 120])
def test_ids_that_can(image_id):
    assert datasets.id_problem(image_id) == ""
