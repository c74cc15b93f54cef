"""The layout for your own photos: a folder, with or without subfolders, and one file with the labels of the photos.

    labels.csv, metadata.csv      header `file,labels` or `file,labels,split`; several labels are separated by `;`
    labels.jsonl, metadata.jsonl  one {"file": "a.jpg", "labels": ["cat"], "split": "train"} per line
    labels.json                   {"a.jpg": ["cat", "dog"], ...} or a list of such objects
    classes.txt                   optional, line i is the class of mask value i; a label that is not here is an error
    masks/a.png                   optional, the mask of a.jpg (masks/sub/a.png of sub/a.jpg), value i = i-th class

`metadata` is the name that Hugging Face's `imagefolder` gives the file; it may also lie in the folders `train` and
`validation`, which are then the splits. `file_name` and `image` mean `file`; `label` and `text` mean `labels`. A photo
without a row of labels is ignored. The rest is said in `labelled`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Any

from wsseg_ray.datasets import Layout, Listing, root_of
from wsseg_ray.datasets.labelled import Row, listing_of, split_in
from wsseg_ray.datasets.place import Place
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import LABEL_FILES, DatasetSection

SAME = {"file_name": "file", "image": "file", "label": "labels", "text": "labels"}  # other names of columns


def read(section: DatasetSection, seed: int = 0) -> Listing:
    """All labelled photos. Raises DatasetError if a file of labels cannot be read."""
    root = root_of(section)
    found = list(_files(root))
    if not found:
        raise DatasetError(f"dataset.root: {root} has neither labels.csv nor labels.json")
    for folder in {file.parent for file in found}:
        there = [file.name for file in found if file.parent == folder]
        if len(there) > 1:
            raise DatasetError(f"dataset.root: {folder} has both {' and '.join(there)}; remove one")
    rows = (_inside(root, file, row) for file in found for row in _rows(file))
    return listing_of(root, found[0], rows, section)


def _files(root: Place) -> Iterator[Place]:
    """The files of labels: in the folder, or else in its folders of splits."""
    entries = root.entries()
    there = [root / name for name in LABEL_FILES if entries.get(name) is False]
    if there:
        yield from there
        return
    for folder in (root / name for name, is_folder in sorted(entries.items()) if is_folder and split_in(name)):
        own = folder.entries()
        yield from (folder / name for name in LABEL_FILES if own.get(name) is False)


def _inside(root: Place, file: Place, row: Row) -> Row:
    """A row of a file in a split's folder, with its path inside the data set's folder and its split."""
    folder = file.parent
    if folder == root:
        return row
    return row._replace(file=f"{folder.name}/{row.file}", split=row.split or split_in(folder.name))


def _rows(path: Place) -> Iterable[Row]:
    return {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}[path.suffix](path)


def _csv_rows(path: Place) -> Iterator[Row]:
    reader = csv.reader(path.lines(), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        columns = [SAME.get(name, name) for name in header]
        if not {"file", "labels"} <= set(columns):
            raise DatasetError(
                f"{path} line 1: needs the columns file,labels and may have split; it has {','.join(header)!r}"
            )
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            cells = dict(zip(columns, (field.strip() for field in fields), strict=False))
            if not cells.get("file"):
                raise DatasetError(f"{path} line {reader.line_num}: no file name")
            if len(fields) != len(header):
                error = (
                    f"{path} line {reader.line_num}: {len(fields)} fields for the {len(header)} columns "
                    f"{','.join(header)}; separate labels by ;"
                )
                yield Row(cells["file"], [], None, error)
                continue
            labels = [label.strip() for label in cells["labels"].split(";") if label.strip()]
            yield Row(cells["file"], labels, cells.get("split"))
    except csv.Error as error:
        raise DatasetError(f"{path} line {reader.line_num}: not CSV: {error}") from error


def _json_rows(path: Place) -> list[Row]:
    data = _parsed(path, path.read_text())
    if isinstance(data, dict):
        data = [{"file": file, "labels": labels} for file, labels in data.items()]
    if not isinstance(data, list):
        raise DatasetError(f'{path}: needs {{"file": [labels]}} or a list of {{"file", "labels", "split"}}')
    return [_json_row(f"{path} entry {number}", item) for number, item in enumerate(data, 1)]


def _jsonl_rows(path: Place) -> Iterator[Row]:
    for number, line in enumerate(path.lines(), 1):
        if line.strip():
            place = f"{path} line {number}"
            yield _json_row(place, _parsed(place, line))


def _parsed(place: Place | str, text: str) -> Any:
    try:
        data = json.loads(text)
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair is valid JSON but not text
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place} is not JSON: {error}") from error
    return data


def _json_row(place: str, item: Any) -> Row:
    cells = {SAME.get(name, name): value for name, value in item.items()} if isinstance(item, dict) else {}
    file, labels, split = cells.get("file"), cells.get("labels"), cells.get("split")
    if not isinstance(file, str) or not file.strip():
        raise DatasetError(f'{place}: needs a "file"')
    if isinstance(labels, str) and "labels" not in item:  # `label` and `text` have one name
        labels = [labels]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return Row(file.strip(), [], None, f'{place}: labels must be a list of names, as ["cat"]')
    if split is not None and not isinstance(split, str):
        return Row(file.strip(), [], None, f"{place}: split must be a name")
    return Row(file.strip(), [label.strip() for label in labels], split)


LAYOUT = Layout(read, recognises=lambda root: any(_files(root)))
