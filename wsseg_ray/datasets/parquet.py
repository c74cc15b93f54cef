"""The layout of Parquet files with photos, as Hugging Face's `datasets` and others write them.

    train-00000-of-00002.parquet, validation-00000-of-00001.parquet    in the folder, or in its folder `data`
    image     bytes, or {"bytes", "path"}, or the photo's path inside the folder, or its URI
    labels    names or numbers, one or a list; numbers are named by the file's own ClassLabel, or by classes.txt
    split     optional; without it the file's name says it

`file`, `file_name`, `uri` and `url` mean `image`; `label` means `labels`. A photo's id is its path if all paths are
different, otherwise the name of its file and its row. Photos are read where they are: one row group at a time.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsseg_ray.datasets import Layout, Listing, read_classes, root_of
from wsseg_ray.datasets.labelled import Row, files_in, has_files, listing_of, named, split_of
from wsseg_ray.datasets.place import Place
from wsseg_ray.datasets.spool import Spool
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection
from wsseg_ray.sources import parquet_cell
from wsseg_ray.storage import filesystem_of, is_uri

SUFFIX = ".parquet"
IMAGES = ("image", "file", "file_name", "uri", "url")
LABELS = ("labels", "label")


class Cell(NamedTuple):
    """A row of a file: where its photo is, what it is called, and what the file says of it."""

    file: Place
    number: int
    path: str  # the photo's own name, or ""
    uri: str  # its place, or "": it is a path inside the folder
    labels: list[str]
    split: str


def read(section: DatasetSection, seed: int = 0) -> Listing:
    """All photos of the Parquet files. Raises DatasetError where a file is not Parquet or has no such columns."""
    root = root_of(section)
    files = files_in(root, SUFFIX)
    names = read_classes(root)
    cells = Spool(cell for file in files for cell in _cells(file, split_of(file, root), names))
    own = _all_unlike(cell.path for cell in cells)
    return listing_of(root, files[0], (_row(cell, own) for cell in cells), section)


def _all_unlike(paths: Iterable[str]) -> bool:
    """Whether all paths are there and different. They are compared by 64 bits of a hash: 8 bytes of memory per path."""
    seen = array("Q")
    for path in paths:
        if not path:
            return False
        seen.append(int.from_bytes(blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"))
    return len(np.unique(np.frombuffer(seen, np.uint64))) == len(seen)


def _row(cell: Cell, own: bool) -> Row:
    name = cell.path if own else f"{cell.file.stem}-{cell.number:06d}"
    return Row(name, cell.labels, cell.split, uri=cell.uri)


def _cells(file: Place, split: str, names: list[str]) -> Iterator[Cell]:
    """The rows of a file; only its columns of labels and paths are read."""
    filesystem, path = filesystem_of(file.uri)
    try:
        with filesystem.open_input_file(path) as source:
            about = pq.ParquetFile(source)
            schema = about.schema_arrow
            image, label = _column(file, schema, IMAGES), _column(file, schema, LABELS)
            kind = schema.field(image).type
            inside = _inside(file, image, kind)
            read = [f"{image}.path"] if pa.types.is_struct(kind) else [] if pa.types.is_binary(kind) else [image]
            names = _class_label(schema, label) or names
            wanted = [*read, label, *(["split"] if "split" in schema.names else [])]
            rows = Spool(
                row for some in about.iter_batches(columns=wanted, use_threads=False) for row in some.to_pylist()
            )
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{file} is not a Parquet file that can be read: {error}") from error
    for number, row in enumerate(rows):
        there = (row.get(image) or {}).get("path") if pa.types.is_struct(kind) else row.get(image)
        uri = parquet_cell(file.uri, number, inside) if inside else there if is_uri(there or "") else ""
        try:
            labels = named(row[label], names)
        except ValueError as error:
            raise DatasetError(f"{file} row {number}: {error}") from error
        yield Cell(file, number, str(there or ""), uri or "", labels, row.get("split") or split)


def _column(file: Place, schema: pa.Schema, wanted: tuple[str, ...]) -> str:
    found = next((name for name in wanted if name in schema.names), None)
    if found is None:
        raise DatasetError(f"{file}: needs a column {' or '.join(wanted[:2])}; it has {', '.join(schema.names)}")
    return found


def _inside(file: Place, column: str, kind: pa.DataType) -> str:
    """The path of the column that holds bytes; "": the photos lie elsewhere."""
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        return f"{column}.bytes"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return ""
    raise DatasetError(f"{file}: the column {column} must hold the bytes of photos, or their paths or URIs, not {kind}")


def _class_label(schema: pa.Schema, column: str) -> list[str]:
    """The names of a column's numbers that `datasets` keeps beside the schema; none where there are none."""
    try:
        feature: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return [str(name) for name in (feature.get("feature", feature))["names"]]
    except (KeyError, ValueError, TypeError, AttributeError):
        return []


LAYOUT = Layout(read, recognises=lambda root: has_files(root, SUFFIX))
