from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from wsseg_ray.datasets import download, list_photos
from wsseg_ray.datasets.download import augment, voc2012
from wsseg_ray.datasets.pixels import encode_mask, read_mask
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import VOC_CLASSES, DatasetSection

OWN, SBD = np.full((2, 3), 8, np.uint8), np.array([[0, 12, 12], [0, 0, 8]], np.uint8)


def write(path: Path, data: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def lay_voc(root: Path) -> Path:
    """VOC's train {t}, val {v}; SBD adds {s, n}, of which n is not in the classification task."""
    voc = root / "VOCdevkit" / "VOC2012"
    objects = {"t": [("cat", 0)], "v": [("dog", 0)], "s": [("dog", 1), ("cat", 0)], "n": [("dog", 0)]}
    for image_id, names in objects.items():
        items = "".join(f"<object><name>{n}</name><difficult>{d}</difficult></object>" for n, d in names)
        write(voc / "Annotations" / f"{image_id}.xml", f"<annotation>{items}</annotation>")
        write(voc / "JPEGImages" / f"{image_id}.jpg", "")
    for image_id in "tv":
        write(voc / "SegmentationClass" / f"{image_id}.png", encode_mask(OWN))
    for name, ids in {"train": "t\n", "val": "v\n", "trainval": "t\nv\n"}.items():
        write(voc / "ImageSets/Segmentation" / f"{name}.txt", ids)
    write(voc / "ImageSets/Main/trainval.txt", "s\nt\nv\n")
    return voc


def lay_sbd(sbd: Path) -> None:
    (sbd / "cls").mkdir(parents=True)
    for image_id in ("t", "v", "s", "n"):
        savemat(sbd / "cls" / f"{image_id}.mat", {"GTcls": {"Boundaries": 0, "Segmentation": SBD}})
    write(sbd / "val.txt", "v\n")


def test_augment(tmp_path):
    voc = lay_voc(tmp_path)
    lay_sbd(tmp_path / "sbd")
    said = []
    augment(voc, tmp_path / "sbd", said.append)
    lists, main = voc / "ImageSets/Segmentation", voc / "ImageSets/Main"
    assert (lists / "train_aug.txt").read_text() == "n\ns\nt\n"
    assert (lists / "paper.txt").read_text() == "s\nt\n"
    assert (main / "cat_train_aug.txt").read_text() == "n -1\ns  1\nt  1\n"
    assert (main / "dog_paper.txt").read_text() == "s  0\nt -1\n"
    assert len(list(main.glob("*_train_aug.txt"))) == len(list(main.glob("*_paper.txt"))) == 20
    masks = {path.stem: path.read_bytes() for path in (voc / "SegmentationClassAug").iterdir()}
    assert masks == {"t": encode_mask(OWN), "v": encode_mask(OWN), "s": encode_mask(SBD), "n": encode_mask(SBD)}
    assert (read_mask(masks["s"], 2, 3, list(range(1, 21))) == SBD).all()
    assert said == [
        "converting 2 masks of SBD",
        "split train_aug: 3 photos; the paper has 10,582",
        "split paper: 2 photos; the paper has 10,269",
    ]

    cat, dog = VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")
    expected = {"n": (dog,), "s": (cat,), "t": (cat,), "v": (dog,)}
    for split, ids in (("train_aug", "nstv"), ("paper", "stv")):
        listing = list_photos(DatasetSection(root=str(voc), train_split=split))
        assert {photo.image_id: photo.labels for photo in listing.photos} == {i: expected[i] for i in ids}


def test_the_number_of_photos_is_said_alone_where_it_is_the_papers(monkeypatch, tmp_path):
    voc, said = lay_voc(tmp_path), []
    lay_sbd(tmp_path / "sbd")
    monkeypatch.setattr(download, "DOWNLOADED", {"train_aug": 3, "paper": 2})
    augment(voc, tmp_path / "sbd", said.append)
    assert said[1:] == ["split train_aug: 3 photos", "split paper: 2 photos"]


@pytest.mark.parametrize("split", ["paper", "train_aug"])
def test_who_has_voc_without_the_list_is_told_how_to_get_it(tmp_path, split):
    voc = lay_voc(tmp_path)
    with pytest.raises(DatasetError) as caught:
        list_photos(DatasetSection(root=str(voc), train_split=split))
    message = str(caught.value)
    assert (
        message.startswith("dataset.train_split: ") and f"no split '{split}'; there are train, trainval, val" in message
    )
    assert "wsseg download voc2012 --root DIR" in message and "--set dataset.train_split=NAME" in message


def test_augment_again_changes_nothing_and_finishes_what_is_missing(tmp_path):
    voc = lay_voc(tmp_path)
    lay_sbd(tmp_path / "sbd")
    augment(voc, tmp_path / "sbd", lambda line: None)
    first = {path: path.read_bytes() for path in voc.rglob("*") if path.is_file()}
    (voc / "SegmentationClassAug/s.png").unlink()
    said = []
    augment(voc, tmp_path / "sbd", said.append)
    assert said[0] == "converting 1 masks of SBD"
    assert {path: path.read_bytes() for path in voc.rglob("*") if path.is_file()} == first


def test_augment_names_the_damaged_file(tmp_path):
    voc = lay_voc(tmp_path)
    lay_sbd(tmp_path / "sbd")
    write(voc / "Annotations/s.xml", "<")
    with pytest.raises(DatasetError, match=r"s\.xml cannot be read"):
        augment(voc, tmp_path / "sbd", lambda line: None)
    (voc / "SegmentationClassAug/n.png").unlink()
    write(tmp_path / "sbd/cls/n.mat", "no mat")
    with pytest.raises(DatasetError, match=r"n\.mat is not a mask of SBD"):
        augment(voc, tmp_path / "sbd", lambda line: None)


def test_fetches_what_is_missing_once(monkeypatch, tmp_path):
    calls = []

    def fetch_voc(root, **options):
        calls.append(("voc", options["image_set"]))
        lay_voc(root)

    def fetch_sbd(root, **options):
        calls.append(("sbd", options["image_set"]))
        lay_sbd(root)

    monkeypatch.setattr(download, "VOCSegmentation", fetch_voc)
    monkeypatch.setattr(download, "SBDataset", fetch_sbd)
    for _ in range(2):
        assert voc2012(tmp_path, lambda line: None) == tmp_path / "VOCdevkit/VOC2012"
    assert calls == [("voc", "trainval"), ("sbd", "train")]
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/s.jpg").unlink()
    voc2012(tmp_path, lambda line: None)
    assert calls[2:] == [("voc", "trainval")]


def test_without_a_network_it_says_how_to_place_the_files(monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(download, "VOCSegmentation", fail)
    with pytest.raises(DatasetError, match=r"VOC 2012 could not .*no route to host.*place it as .*VOCtrainval.*\.tar"):
        voc2012(tmp_path / "new", lambda line: None)
    lay_voc(tmp_path)
    monkeypatch.setattr(download, "SBDataset", fail)
    with pytest.raises(DatasetError, match=r"SBD could not .*place it as .*benchmark\.tgz"):
        voc2012(tmp_path, lambda line: None)
