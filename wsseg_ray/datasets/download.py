"""Download PASCAL VOC 2012 and SBD, and join them into the paper's training set (Sec. 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from torchvision.datasets import SBDataset, VOCSegmentation

from wsseg_ray.datasets import names_in
from wsseg_ray.datasets.pixels import encode_mask
from wsseg_ray.datasets.place import Place
from wsseg_ray.datasets.voc import DOWNLOADED, read_annotation, read_ids
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import VOC_CLASSES


def voc2012(root: Path, say: Callable[[str], None]) -> Path:
    """Download VOC 2012 and SBD into `root` and add the splits `train_aug` and `paper`. Existing files are kept.

    Arguments:
        root: the folder for VOCdevkit/VOC2012 and sbd.
        say: called with each line of progress.
    Returns the folder VOCdevkit/VOC2012, the value for `dataset.root`.
    Costs a download of 3.4 GB (VOC 2.0, SBD 1.4) and twice that on disk.
    Raises DatasetError where a download fails; the message says how to download the files by hand.
    """
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "sbd"
    if not _voc_complete(voc):
        say("downloading VOC 2012 (2.0 GB)")
        _fetch(
            "VOC 2012",
            lambda: VOCSegmentation(root, year="2012", image_set="trainval", download=True),
            root / "VOCtrainval_11-May-2012.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        )
    if not (sbd / "val.txt").is_file():  # the last file that torchvision writes
        say("downloading SBD (1.4 GB)")
        # Every image set unpacks all masks; `train_noval` would also need a list whose server no longer exists.
        _fetch(
            "SBD",
            lambda: SBDataset(sbd, image_set="train", mode="segmentation", download=True),
            sbd / "benchmark.tgz",
            "http://home.bharathh.info/pubs/codes/SBD/download.html",
        )
    augment(voc, sbd, say)
    return voc


def augment(voc: Path, sbd: Path, say: Callable[[str], None]) -> None:
    """Add SBD's masks and the splits `train_aug` and `paper` to a VOC folder.

    `train_aug` is VOC's train and all of SBD, without VOC's val (10,582 photos); `paper` is its intersection with the
    trainval of the classification task (Sec. 4.1: 10,269 photos). Reports each split's number of photos, and the
    paper's number if it differs.

    Arguments:
        voc: a VOC folder; gets SegmentationClassAug, ImageSets/Segmentation/{train_aug,paper}.txt and
            ImageSets/Main/<class>_{train_aug,paper}.txt.
        sbd: the folder with cls/<id>.mat.
        say: called with each line of progress.
    Costs some minutes for all of VOC; existing masks are kept.
    Raises DatasetError where a mask or an annotation cannot be read.
    """
    lists, main = voc / "ImageSets" / "Segmentation", voc / "ImageSets" / "Main"
    sbd_ids = {name.removesuffix(".mat") for name in _names(sbd / "cls")}
    train_aug = sorted((set(_ids(lists / "train.txt")) | sbd_ids) - set(_ids(lists / "val.txt")))
    classified = set(_ids(main / "trainval.txt"))
    splits = {"train_aug": train_aug, "paper": [image_id for image_id in train_aug if image_id in classified]}
    _write_masks(voc, sbd / "cls", sbd_ids, say)
    present = {image_id: _annotation(voc / "Annotations" / f"{image_id}.xml") for image_id in train_aug}
    for split, ids in splits.items():
        for label in VOC_CLASSES:
            values = {None: -1, False: 0, True: 1}
            lines = [f"{image_id} {values[present[image_id].get(label)]:2d}\n" for image_id in ids]
            _write(main / f"{label}_{split}.txt", "".join(lines).encode())
        _write(lists / f"{split}.txt", "".join(f"{image_id}\n" for image_id in ids).encode())
        note = "" if len(ids) == DOWNLOADED[split] else f"; the paper has {DOWNLOADED[split]:,}"
        say(f"split {split}: {len(ids):,} photos{note}")


def _ids(path: Path) -> list[str]:
    return read_ids(Place.at(path))


def _names(folder: Path) -> set[str]:
    return names_in(Place.at(folder))


def _voc_complete(voc: Path) -> bool:
    photos, masks = voc / "ImageSets" / "Main" / "trainval.txt", voc / "ImageSets" / "Segmentation" / "trainval.txt"
    return (
        photos.is_file()
        and masks.is_file()
        and {f"{image_id}.jpg" for image_id in _ids(photos)} <= _names(voc / "JPEGImages")
        and {f"{image_id}.png" for image_id in _ids(masks)} <= _names(voc / "SegmentationClass")
    )


def _fetch(what: str, download: Callable[[], object], archive: Path, page: str) -> None:
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        download()
    except Exception as error:  # network, archive and disk raise many types
        raise DatasetError(
            f"{what} could not be downloaded and unpacked: {error}. By hand: get {archive.name} from {page}, place it "
            f"as {archive}, delete half-unpacked files next to it, and run this again"
        ) from error


def _write_masks(voc: Path, cls: Path, sbd_ids: set[str], say: Callable[[str], None]) -> None:
    own, both = voc / "SegmentationClass", voc / "SegmentationClassAug"
    both.mkdir(exist_ok=True)
    done = _names(both)
    own_names = _names(own)
    for name in sorted(own_names - done):
        _write(both / name, (own / name).read_bytes())
    missing = sorted({f"{image_id}.png" for image_id in sbd_ids} - own_names - done)
    say(f"converting {len(missing)} masks of SBD")
    for name in missing:
        _write(both / name, encode_mask(_sbd_mask(cls / f"{name.removesuffix('.png')}.mat")))


def _sbd_mask(path: Path) -> np.ndarray:
    try:
        return loadmat(path)["GTcls"]["Segmentation"][0, 0].astype(np.uint8)
    except Exception as error:  # scipy raises many types for damaged files
        raise DatasetError(f"{path} is not a mask of SBD: {error!r}; unpack SBD again") from error


def _annotation(path: Path) -> dict[str, bool]:
    try:
        return read_annotation(Place.at(path))
    except ValueError as error:
        raise DatasetError(f"{error}; unpack VOC 2012 again") from error


def _write(path: Path, data: bytes) -> None:
    """Write under a temporary name and rename, so that an interrupted write leaves no file that looks complete."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    part.replace(path)
