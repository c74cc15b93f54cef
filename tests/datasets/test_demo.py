import numpy as np
import pytest
from PIL import Image

from wsseg_ray.datasets.demo import CLASSES, MIN_VISIBLE, SPLITS, TRAIN_PHOTOS, VAL_PHOTOS, draw, draw_photo


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    draw(folder, seed=0, limit=8)
    return folder


@pytest.fixture(scope="module")
def forty():
    return [draw_photo(3, index) for index in range(40)]


def test_sizes_and_mask_values(forty):
    for photo, mask in forty:
        assert photo.dtype == mask.dtype == np.uint8
        assert photo.shape == (*mask.shape, 3)
        assert min(mask.shape) >= 88 and max(mask.shape) <= 112
        counts = np.bincount(mask.ravel(), minlength=256)
        assert counts[len(CLASSES) + 1 :].sum() == 0
        assert all(count == 0 or count >= MIN_VISIBLE for count in counts)
        assert counts[0] > 0 and 1 <= (counts[1:] > 0).sum() <= 3
    assert len({mask.shape for _, mask in forty}) > 10


def test_every_class_occurs(forty):
    assert set(np.unique(np.concatenate([mask.ravel() for _, mask in forty]))) == set(range(len(CLASSES) + 1))


def test_any_six_photos_hold_every_class():
    masks = [draw_photo(7, index, "val")[1] for index in range(3, 3 + len(CLASSES))]
    assert set(np.concatenate([np.unique(mask) for mask in masks])) == set(range(len(CLASSES) + 1))


def test_a_photo_depends_on_seed_split_and_index_alone():
    photo, mask = draw_photo(0, 5)
    again, mask_again = draw_photo(0, 5)
    assert (photo == again).all() and (mask == mask_again).all()
    others = [draw_photo(1, 5), draw_photo(0, 6), draw_photo(0, 5, "val")]
    assert all(other.shape != photo.shape or (other != photo).any() for other, _ in others)


def test_files(drawn):
    assert (drawn / "classes.txt").read_text().split() == CLASSES
    for split, (word, _) in SPLITS.items():
        ids = (drawn / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        assert ids == [f"demo_{word}_{index:05d}" for index in range(8)]
        for index, image_id in enumerate(ids):
            photo, mask = draw_photo(0, index, split)
            with Image.open(drawn / "JPEGImages" / f"{image_id}.jpg") as jpeg:
                assert jpeg.format == "JPEG"
                assert np.abs(np.asarray(jpeg, int) - photo).mean() < 8
            with Image.open(drawn / "SegmentationClass" / f"{image_id}.png") as png:
                assert png.mode == "P"
                assert (np.asarray(png) == mask).all()


def test_labels_are_the_classes_in_the_mask(drawn):
    for split, (word, _) in SPLITS.items():
        ids = [f"demo_{word}_{index:05d}" for index in range(8)]
        masks = [np.asarray(Image.open(drawn / "SegmentationClass" / f"{image_id}.png")) for image_id in ids]
        for value, name in enumerate(CLASSES, start=1):
            signs = [" 1" if (mask == value).any() else "-1" for mask in masks]
            expected = "".join(f"{image_id} {sign}\n" for image_id, sign in zip(ids, signs, strict=True))
            assert (drawn / "ImageSets" / "Main" / f"{name}_{split}.txt").read_text() == expected


def test_same_seed_same_bytes_other_seed_others(drawn, tmp_path):
    draw(tmp_path / "same", seed=0, limit=8)
    draw(tmp_path / "other", seed=1, limit=8)
    assert _files(tmp_path / "same") == _files(drawn)
    other = _files(tmp_path / "other")
    assert all(data != other[name] for name, data in _files(drawn).items() if name.endswith((".jpg", ".png")))


def test_a_smaller_limit_draws_the_first_photos(drawn, tmp_path):
    draw(tmp_path, seed=0, limit=2)
    few, many = _files(tmp_path), _files(drawn)
    photos = {name for name in few if name.endswith((".jpg", ".png"))}
    assert len(photos) == 2 * 2 * len(SPLITS)
    assert all(few[name] == many[name] for name in photos)
    assert all(many[name].startswith(data) for name, data in few.items() if name.startswith("ImageSets"))


def test_limit_is_at_most_the_whole(monkeypatch, tmp_path):
    calls = []

    def tiny(seed, index, split):
        calls.append((split, index))
        return np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.uint8)

    monkeypatch.setattr("wsseg_ray.datasets.demo.draw_photo", tiny)
    draw(tmp_path, seed=0, limit=None)
    whole = [("train_aug", n) for n in range(TRAIN_PHOTOS)] + [("val", n) for n in range(VAL_PHOTOS)]
    assert calls == whole
    draw(tmp_path, seed=0, limit=1000)  # no other photos than before
    assert calls == whole


def test_drawing_twice_does_nothing_and_an_unfinished_drawing_is_drawn_again(drawn, tmp_path, monkeypatch):
    draw(tmp_path, seed=0, limit=2)
    before = _files(tmp_path)
    photo = tmp_path / "JPEGImages" / "demo_train_00000.jpg"
    photo.write_bytes(b"")
    draw(tmp_path, seed=0, limit=2)
    assert photo.read_bytes() == b""

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wsseg_ray.datasets.demo.draw_photo", killed)
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path, seed=1, limit=2)
    draw(tmp_path, seed=0, limit=2)
    assert _files(tmp_path) == before
