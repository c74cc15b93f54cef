"""Rows of a file and its labels, as layouts for people's own photos read them, made into a listing.

Photos are jpg, jpeg, png, webp or bmp. The classes come from classes.txt, otherwise from `dataset.classes`, otherwise
they are all labels in alphabetical order. A photo's id is its path without suffix, with `__` for `/`. If no row has a
split, a hash of the id puts one photo in five into `val`, so that new photos do not change the split of the others.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from wsseg_ray.datasets import Listing, Photo, choose_classes, id_problem, names_in, read_classes
from wsseg_ray.datasets.place import Place
from wsseg_ray.datasets.spool import Spool
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection
from wsseg_ray.sources import is_web
from wsseg_ray.storage import is_uri, shown

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VAL_ONE_IN = 5
READABLE = ("s3://", "gs://", "https://", "http://")  # where photos may lie that are not in the folder
TRAIN = ("train", "training")  # names of folders and files of a split
VAL = ("val", "validation", "valid", "test")


class Row(NamedTuple):
    """What a data set says of a photo.

    Arguments:
        file: path inside the data set's folder, or a URI or web address; with `uri`, only the photo's name.
        split: name of its split; None or "": not said.
        error: why the row cannot be used, or "".
        uri: where the photo lies, if it is not a file of the folder.
    """

    file: str
    labels: list[str]
    split: str | None
    error: str = ""
    uri: str = ""


def listing_of(root: Place, source: Place, rows: Iterable[Row], section: DatasetSection) -> Listing:
    """The photos that rows name.

    Arguments:
        root: the data set's folder.
        source: where the rows are from, for messages.
        rows: gone through once; they are kept in a temporary file.
    Raises DatasetError where there are no labels, more than 254, or no photo of a split that the recipe names.
    """
    labels: set[str] = set()
    splits: set[str] = set()
    errors: list[str] = []

    def noted() -> Iterator[Row]:
        for row in rows:
            labels.update(row.labels)
            if row.split:
                splits.add(row.split)
            if row.error and not errors:
                errors.append(row.error)
            yield row

    kept = Spool(noted())
    known = read_classes(root) or section.classes or sorted(labels)
    if not 1 <= len(known) <= 254:
        reason = f": {errors[0]}" if errors else ""
        raise DatasetError(f"{source}: has {len(known)} different labels; needs 1 to 254{reason}")
    classes, mask_values = choose_classes(known, section.classes)
    return Listing(classes, mask_values, _Named(root, kept, known, classes, _splits(source, splits, section)))


@dataclass(frozen=True)
class _Named:
    """The photos that rows name, made when they are gone through."""

    root: Place
    rows: Iterable[Row]
    known: list[str]
    classes: list[str]
    splits: dict[str, str]

    def __iter__(self) -> Iterator[Photo]:
        scan = functools.cache(names_in)
        for row in self.rows:
            if _wanted(row, self.splits):
                yield _photo(self.root, row, self.known, self.classes, self.splits, scan)


def split_of(file: Place, root: Place) -> str:
    """The split that the name of a file tells, or that of its folder inside the data set's folder; "": none."""
    return split_in(file.name) or (split_in(file.parent.name) if file.parent != root else "")


def files_in(root: Place, suffix: str) -> list[Place]:
    """Files with photos in them: in the folder, in its folder `data`, and in its folders of splits.

    Raises DatasetError where there is none.
    """
    folders = sorted(name for name, is_folder in root.entries().items() if is_folder)
    places = [root, *(root / name for name in folders if name == "data" or split_in(name))]
    found = [
        place / name
        for place in places
        for name, is_folder in sorted(place.entries().items())
        if name.endswith(suffix) and not is_folder
    ]
    if not found:
        raise DatasetError(f"dataset.root: {root} has no file {suffix}")
    return found


def has_files(root: Place, suffix: str) -> bool:
    """Whether `files_in` finds any."""
    try:
        return bool(files_in(root, suffix))
    except DatasetError:
        return False


def named(labels: Any, names: list[str]) -> list[str]:
    """Labels as names: a label or a list of labels, each a name or a number; number i is the name i of `names`.

    A number without a name is its own name. Raises ValueError where a label is neither.
    """
    found = []
    for label in labels if isinstance(labels, list) else [labels] if labels is not None else []:
        if isinstance(label, int) and not isinstance(label, bool):
            found.append(names[label] if 0 <= label < len(names) else str(label))
        elif isinstance(label, str):
            found.append(label.strip())
        else:
            raise ValueError(f"a label must be a name or a number, not {label!r}")
    return found


def split_in(name: str) -> str:
    """The split that the name of a folder or file tells, `train` or `val`; "": none."""
    words = "".join(letter if letter.isalpha() else " " for letter in name.lower()).split()
    return "train" if set(words) & set(TRAIN) else "val" if set(words) & set(VAL) else ""


def _splits(path: Place, named: set[str], section: DatasetSection) -> dict[str, str]:
    """Which of the file's splits is "train" and which "val"; empty if the file has no splits."""
    if not named:
        return {}
    for key in ("train_split", "val_split"):
        if getattr(section, key) not in named:
            raise DatasetError(
                f"dataset.{key}: {path} has no photo of split {getattr(section, key)!r}; "
                f"it has {', '.join(sorted(named))}"
            )
    return {section.train_split: "train", section.val_split: "val"}


def _wanted(row: Row, splits: dict[str, str]) -> bool:
    return not splits or not row.split or row.split in splits


def _photo(
    root: Place,
    row: Row,
    known: list[str],
    classes: list[str],
    splits: dict[str, str],
    scan: Callable[[Place], set[str]],
) -> Photo:
    uri = row.file if is_uri(row.file) else row.uri
    path = PurePosixPath(_path_of(uri) if is_uri(row.file) else row.file)
    image_id = str(path.parent / path.stem).replace("/", "__")
    split = splits.get(row.split or "", "train") if splits else _hashed_split(image_id)
    if path.is_absolute() or ".." in path.parts:
        problem = f"{row.file!r} is outside the data set's folder; write a path inside it"
        return Photo(image_id, "", (), split, error=problem)
    place = Place(uri) if uri else root / str(path)
    problem = id_problem(image_id) or _problem(row, path, splits)
    if not uri and not problem and path.name not in scan(place.parent):
        problem = f"the photo {place} is missing"
    if problem := problem or _label_problem(row, known):
        return Photo(image_id, place.uri, (), split, error=problem)
    labels = tuple(index for index, label in enumerate(classes) if label in row.labels)
    mask = root / str("masks" / path.with_suffix(".png"))
    return Photo(image_id, place.uri, labels, split, mask.uri if mask.name in scan(mask.parent) else "")


def _problem(row: Row, path: PurePosixPath, splits: dict[str, str]) -> str:
    """What is wrong with a row and its file's name, or ""."""
    if row.error:
        return row.error
    if splits and not row.split:
        return f"{row.file} has no split, but other rows have one"
    if is_uri(row.file) and not row.file.startswith(READABLE):
        return f"{shown(row.file)} cannot be read: its address must begin with one of {', '.join(READABLE)}"
    if not (row.uri or is_web(row.file)) and path.suffix.lower() not in PHOTO_SUFFIXES:
        return f"{row.file} is not a photo: its name must end in {', '.join(PHOTO_SUFFIXES)}"
    return ""


def _path_of(uri: str) -> str:
    """The path of a URI, without bucket or host and without query."""
    return uri.partition("://")[2].partition("?")[0].partition("/")[2]


def _label_problem(row: Row, known: list[str]) -> str:
    unknown = [label for label in row.labels if label not in known]
    return f"{row.file}: {', '.join(unknown)} is not among the classes {', '.join(known)}" if unknown else ""


def _hashed_split(image_id: str) -> str:
    digest = hashlib.sha256(image_id.encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") % VAL_ONE_IN == 0 else "train"
