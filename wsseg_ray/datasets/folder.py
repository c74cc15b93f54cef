"""The layout for your own photos: a folder, with or without subfolders, and one file with the labels of the photos.

    labels.csv      header `file,labels` or `file,labels,split`; several labels are separated by `;`
    labels.json     {"a.jpg": ["cat", "dog"], ...} or [{"file": "a.jpg", "labels": ["cat"], "split": "train"}, ...]
    classes.txt     optional, line i is the class of mask value i; a photo with a label that is not here is an error
    masks/a.png     optional, the mask of a.jpg (masks/sub/a.png of sub/a.jpg), value i = i-th class

Photos are jpg, jpeg, png, webp or bmp; a photo without a row of labels is ignored. The classes come from classes.txt,
otherwise from `dataset.classes`, otherwise they are all labels in alphabetical order. A photo's id is its path without
suffix, with `__` for `/`. If no row has a split, a hash of the id puts one photo in five into `val`, so that new photos
do not change the split of the others.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from wsseg_ray.datasets import (
    Layout,
    Listing,
    Photo,
    choose_classes,
    id_problem,
    names_in,
    read_classes,
    read_text,
    root_of,
)
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VAL_ONE_IN = 5


class Row(NamedTuple):
    file: str
    labels: list[str]
    split: str | None
    error: str = ""


def read(section: DatasetSection, seed: int = 0) -> Listing:
    """All labelled photos. Raises DatasetError if the file of labels cannot be read."""
    root = root_of(section)
    there = [name for name in ("labels.csv", "labels.json") if (root / name).is_file()]
    if len(there) != 1:
        what = "both labels.csv and labels.json; remove one" if there else "neither labels.csv nor labels.json"
        raise DatasetError(f"dataset.root: {root} has {what}")
    path = root / there[0]
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    known = read_classes(root) or section.classes or sorted({label for row in rows for label in row.labels})
    if not 1 <= len(known) <= 254:
        reason = next((f": {row.error}" for row in rows if row.error), "")
        raise DatasetError(f"{path}: has {len(known)} different labels; needs 1 to 254{reason}")
    classes, mask_values = choose_classes(known, section.classes)
    splits = _splits(path, rows, section)
    scan = functools.cache(names_in)
    photos = [_photo(root, row, known, classes, splits, scan) for row in rows if _wanted(row, splits)]
    return Listing(classes, mask_values, photos)


def _csv_rows(path: Path) -> list[Row]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if not {"file", "labels"} <= set(header):
            raise DatasetError(
                f"{path} line 1: needs the columns file,labels and may have split; it has {','.join(header)!r}"
            )
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            cells = dict(zip(header, (field.strip() for field in fields), strict=False))
            if not cells.get("file"):
                raise DatasetError(f"{path} line {reader.line_num}: no file name")
            if len(fields) != len(header):
                error = (
                    f"{path} line {reader.line_num}: {len(fields)} fields for the {len(header)} columns "
                    f"{','.join(header)}; separate labels by ;"
                )
                rows.append(Row(cells["file"], [], None, error))
                continue
            labels = [label.strip() for label in cells["labels"].split(";") if label.strip()]
            rows.append(Row(cells["file"], labels, cells.get("split")))
    except csv.Error as error:
        raise DatasetError(f"{path} line {reader.line_num}: not CSV: {error}") from error
    return rows


def _json_rows(path: Path) -> list[Row]:
    try:
        data = json.loads(read_text(path))
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair is valid JSON but not text
    except DatasetError:
        raise
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON: {error}") from error
    if isinstance(data, dict):
        data = [{"file": file, "labels": labels} for file, labels in data.items()]
    if not isinstance(data, list):
        raise DatasetError(f'{path}: needs {{"file": [labels]}} or a list of {{"file", "labels", "split"}}')
    return [_json_row(path, number, item) for number, item in enumerate(data, 1)]


def _json_row(path: Path, number: int, item: Any) -> Row:
    file = item.get("file") if isinstance(item, dict) else None
    if not isinstance(file, str) or not file.strip():
        raise DatasetError(f'{path} entry {number}: needs a "file"')
    labels, split = item.get("labels"), item.get("split")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return Row(file.strip(), [], None, f'{path} entry {number}: labels must be a list of names, as ["cat"]')
    if split is not None and not isinstance(split, str):
        return Row(file.strip(), [], None, f"{path} entry {number}: split must be a name")
    return Row(file.strip(), [label.strip() for label in labels], split)


def _splits(path: Path, rows: list[Row], section: DatasetSection) -> dict[str, str]:
    """Which of the file's splits is "train" and which "val"; empty if the file has no splits."""
    named = {row.split for row in rows if row.split}
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
    root: Path,
    row: Row,
    known: list[str],
    classes: list[str],
    splits: dict[str, str],
    scan: Callable[[Path], set[str]],
) -> Photo:
    path = PurePosixPath(row.file)
    image_id = str(path.parent / path.stem).replace("/", "__")
    split = splits.get(row.split or "", "train") if splits else _hashed_split(image_id)
    if path.is_absolute() or ".." in path.parts:
        problem = f"{row.file!r} is outside the data set's folder; write a path inside it"
        return Photo(image_id, "", (), split, error=problem)
    problem = id_problem(image_id) or _problem(row, path, splits)
    if not problem and path.name not in scan(root / path.parent):
        problem = f"the photo {root / path} is missing"
    if problem := problem or _label_problem(row, known):
        return Photo(image_id, str(root / path), (), split, error=problem)
    labels = tuple(index for index, label in enumerate(classes) if label in row.labels)
    mask = root / "masks" / path.with_suffix(".png")
    return Photo(image_id, str(root / path), labels, split, str(mask) if mask.name in scan(mask.parent) else "")


def _problem(row: Row, path: PurePosixPath, splits: dict[str, str]) -> str:
    """What is wrong with a row and its file's name, or ""."""
    if row.error:
        return row.error
    if splits and not row.split:
        return f"{row.file} has no split, but other rows have one"
    if path.suffix.lower() not in PHOTO_SUFFIXES:
        return f"{row.file} is not a photo: its name must end in {', '.join(PHOTO_SUFFIXES)}"
    return ""


def _label_problem(row: Row, known: list[str]) -> str:
    unknown = [label for label in row.labels if label not in known]
    return f"{row.file}: {', '.join(unknown)} is not among the classes {', '.join(known)}" if unknown else ""


def _hashed_split(image_id: str) -> str:
    digest = hashlib.sha256(image_id.encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") % VAL_ONE_IN == 0 else "train"


LAYOUT = Layout(read)
