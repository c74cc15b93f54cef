"""The layout of PASCAL VOC.

    JPEGImages/<id>.jpg
    ImageSets/Segmentation/<split>.txt      the split's ids, one per line
    ImageSets/Main/<class>_<split>.txt      `<id> 1`, `<id> 0` (only difficult objects: not counted) or `<id> -1`
    Annotations/<id>.xml                    read if the photo is in no file of ImageSets/Main
    SegmentationClassAug/<id>.png           or SegmentationClass/<id>.png; optional
    classes.txt                             line i is the class of mask value i; without it, VOC's 20 classes

A split's ids come from ImageSets/Segmentation/<split>.txt, otherwise from ImageSets/Main/<split>.txt, otherwise from
the class files. The order matters: VOC's own `val` has 5,823 photos in its class files, but only the 1,449 photos of
ImageSets/Segmentation have a mask.
"""

from __future__ import annotations

from typing import NamedTuple
from xml.etree import ElementTree

from wsseg_ray.datasets import (
    Layout,
    Listing,
    Photo,
    choose_classes,
    id_problem,
    names_in,
    read_classes,
    root_of,
)
from wsseg_ray.datasets.place import Place
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import VOC_CLASSES, DatasetSection

# Splits that `wsseg download voc2012` writes, and how many photos they have in the paper (Sec. 4.1)
DOWNLOADED = {"train_aug": 10_582, "paper": 10_269}
MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")  # in this order
FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Segmentation", "ImageSets/Main", *MASK_FOLDERS)


class Tree(NamedTuple):
    root: Place
    files: dict[str, set[str]]  # folder -> names of its files
    known: list[str]  # all classes of the data set
    classes: list[str]  # the wanted ones


def read(section: DatasetSection, seed: int = 0) -> Listing:
    """All photos of the two splits. Raises DatasetError where a folder or a split is missing."""
    root = root_of(section)
    known = read_classes(root) or VOC_CLASSES
    classes, mask_values = choose_classes(known, section.classes)
    tree = Tree(root, {folder: names_in(root / folder) for folder in FOLDERS}, known, classes)
    if not tree.files["JPEGImages"]:
        raise DatasetError(
            f"dataset.root: {root} has no photos in JPEGImages; it must be the folder with JPEGImages and ImageSets, "
            f"but it has {_some(names_in(root))}"
        )
    photos = []
    for split, name in (("train", section.train_split), ("val", section.val_split)):
        rows, errors = _class_rows(tree, name)
        for image_id in _ids(tree, split, name, rows, errors):
            photos.append(_photo(tree, split, image_id, rows, errors))
    return Listing(classes, mask_values, photos)


def read_annotation(path: Place) -> dict[str, bool]:
    """The classes in an annotation file; True if at least one object of the class is not marked difficult.

    Raises ValueError where the file cannot be read.
    """
    try:
        annotation = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    classes: dict[str, bool] = {}
    for item in annotation.findall("object"):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{path} has an object without a name")
        clear = (item.findtext("difficult") or "").strip() != "1"
        classes[name] = classes.get(name, False) or clear
    return classes


def read_ids(path: Place) -> list[str]:
    """The ids in an image set file, one per line; empty lines are skipped."""
    return [line.strip() for line in path.read_text().split("\n") if line.strip()]


def _class_rows(tree: Tree, name: str) -> tuple[dict[str, set[str]], dict[str, str]]:
    """The labels of every photo in a split's class files, and error messages of photos with malformed lines."""
    rows: dict[str, set[str]] = {}
    errors: dict[str, str] = {}
    for label in tree.known:  # not only wanted classes: a line of any class means that the photo is labelled here
        if f"{label}_{name}.txt" not in tree.files["ImageSets/Main"]:
            continue
        path = tree.root / f"ImageSets/Main/{label}_{name}.txt"
        seen = set()
        for number, line in enumerate(path.read_text().split("\n"), 1):
            if not line.strip():
                continue
            image_id, value = (*line.strip().rsplit(None, 1), "")[:2]  # an id may contain spaces
            if image_id in seen:
                raise DatasetError(f"{path} line {number}: {image_id!r} occurs twice; remove one of the two lines")
            seen.add(image_id)
            row = rows.setdefault(image_id, set())
            if value == "1":
                row.add(label)
            elif value not in ("0", "-1") and label in tree.classes:
                errors[image_id] = f"{path} line {number}: {line.strip()!r} is not an id and 1, 0 or -1"
    return rows, errors


def _ids(tree: Tree, split: str, name: str, rows: dict[str, set[str]], errors: dict[str, str]) -> list[str]:
    for folder in ("ImageSets/Segmentation", "ImageSets/Main"):
        if f"{name}.txt" in tree.files[folder]:
            ids = read_ids(tree.root / f"{folder}/{name}.txt")
            return ids + sorted(errors.keys() - set(ids))
    if rows:
        return list(rows)
    stems = {file.removesuffix(".txt") for file in tree.files["ImageSets/Main"]}
    splits = {file.removesuffix(".txt") for file in tree.files["ImageSets/Segmentation"]}
    splits |= {stem.removeprefix(f"{label}_") for label in tree.known for stem in stems if stem.startswith(f"{label}_")}
    raise DatasetError(
        f"dataset.{split}_split: {tree.root / 'ImageSets'} has no split {name!r}; there are {_some(splits)}. "
        f"{_remedy(split, name)}"
    )


def _remedy(split: str, name: str) -> str:
    """What a user can do about a missing split."""
    if name in DOWNLOADED:
        return (
            f"`wsseg download voc2012 --root DIR` writes {name!r} into DIR/VOCdevkit/VOC2012 and keeps existing files; "
            f"or choose an existing split: --set dataset.{split}_split=NAME"
        )
    return f"It needs Segmentation/{name}.txt (ids) or Main/<class>_{name}.txt (ids with 1, 0 or -1)"


def _photo(tree: Tree, split: str, image_id: str, rows: dict[str, set[str]], errors: dict[str, str]) -> Photo:
    problem = id_problem(image_id)
    if problem:
        return Photo(image_id, "", (), split, error=problem)
    place = tree.root / f"JPEGImages/{image_id}.jpg"
    try:
        if f"{image_id}.jpg" not in tree.files["JPEGImages"]:
            raise ValueError(f"the photo {place} is missing")
        if image_id in errors:
            raise ValueError(errors[image_id])
        names = rows[image_id] if image_id in rows else _annotated(tree, image_id)
    except ValueError as error:
        return Photo(image_id, place.uri, (), split, error=str(error))
    labels = tuple(index for index, label in enumerate(tree.classes) if label in names)
    masks = [folder for folder in MASK_FOLDERS if f"{image_id}.png" in tree.files[folder]]
    mask = (tree.root / f"{masks[0]}/{image_id}.png").uri if masks else ""
    return Photo(image_id, place.uri, labels, split, mask)


def _annotated(tree: Tree, image_id: str) -> set[str]:
    path = tree.root / f"Annotations/{image_id}.xml"
    if path.name not in tree.files["Annotations"]:
        raise ValueError(f"no labels: {image_id!r} is in no ImageSets/Main/<class>_<split>.txt, and {path} is missing")
    annotated = read_annotation(path)
    unknown = sorted(annotated.keys() - set(tree.known))
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)} is not among the classes {', '.join(tree.known)}")
    return {name for name, clear in annotated.items() if clear}


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"


LAYOUT = Layout(read, recognises=lambda root: (root / "JPEGImages").is_dir())
