"""The run directory: tables with a row a photo, cut into shards.

A table is a folder of Parquet files, one a shard. A shard is a fixed group of photos (`plan_shards`), the same in
every table, so that a stage joins tables file to file, works shard by shard, and resumes by looking which files are
there. A file appears whole or not at all, and running a shard again writes the same file: a row is there once.

A run directory is local or on an object store (`s3://`, `gs://`), through pyarrow's filesystems.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

MAX_SHARD_ROWS = 32  # bounds what one task holds and what a kill repeats

_ROW = [("image_id", pa.string()), ("error", pa.string())]  # error: "" or why this row could not be processed
_ints, _floats, _halfs = pa.list_(pa.int32()), pa.list_(pa.float32()), pa.list_(pa.float16())

SCHEMAS: dict[str, pa.Schema] = {
    "images": pa.schema(
        [
            *_ROW,
            ("uri", pa.string()),
            ("height", pa.int32()),  # pixels, after dataset.max_side
            ("width", pa.int32()),
            ("labels", _ints),  # indices into the class list, sorted
            ("split", pa.string()),  # train | val
            ("mask_uri", pa.string()),  # "" where there is none
        ]
    ),
    "proposals": pa.schema(
        [
            *_ROW,
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("superpixels", pa.binary()),  # H*W little-endian uint16, row-major
            ("indptr", _ints),  # CSR rows of M (N, S), best proposal first
            ("indices", _ints),
            ("objectness", _floats),
            ("hypotheses", _ints),  # the proposals that train HCP
        ]
    ),
    "scores": pa.schema(
        [
            *_ROW,
            ("labels", _ints),  # (K,)
            ("scores", _halfs),  # (K, N) score of every proposal for the photo's labels
            ("candidate", _ints),  # (n,) proposals that are candidates, label after label
            ("candidate_label", _ints),  # (n,)
            ("area", _floats),  # (n,) share of the photo that the candidate covers
            ("norm", _floats),  # (n,) length of the candidate's CNN feature
            ("features", _halfs),  # (n, D) PCA features
            ("fallback", _ints),  # (K,) 1 where no proposal passed the threshold
        ]
    ),
    "refined": pa.schema(
        [
            *_ROW,
            ("distance", _floats),  # (n,) Eq. (1), in the order of scores.candidate
            ("kept", pa.list_(pa.bool_())),  # (n,)
        ]
    ),
    "supervision": pa.schema(
        [
            *_ROW,
            ("labels", _ints),  # (K,)
            ("maps", _halfs),  # (K, S) localization maps
            ("mask", pa.binary()),  # (S,) uint8 rough mask: 0 background, label + 1
            ("maps_unrefined", _halfs),  # the same from all candidates
            ("mask_unrefined", pa.binary()),
            ("candidate_iou", _floats),  # (K,) mean IoU of the candidates with the true mask; empty without one
            ("quality", pa.list_(pa.int64())),  # see stages/supervise.py; empty without a mask
        ]
    ),
    "segmenters/labels": pa.schema(  # one table a round: segmenters/labels-1, ...
        [
            *_ROW,
            ("networks", pa.list_(pa.string())),
            ("labels", pa.list_(pa.binary())),  # what each sees in a training photo, a palette PNG
        ]
    ),
    "predictions": pa.schema(
        [
            *_ROW,
            ("networks", pa.list_(pa.string())),
            ("labels", pa.list_(pa.binary())),  # a palette PNG a network
            ("labels_crf", pa.list_(pa.binary())),  # the same after the CRF; empty where it is off
            ("confusion", pa.list_(pa.int64())),  # (networks, 2, C+1, C+1): without, with CRF; empty without mask
        ]
    ),
}


def plan_shards(count: int) -> list[range]:
    """Cut `count` photos into shards of equal size, at most 32 photos, at least 32 shards where that leaves 4 photos.

    It depends on the number of photos alone, so every machine cuts the same way.
    """
    size = min(MAX_SHARD_ROWS, max(4, math.ceil(count / 32)))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def encode(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of the schema `name`; of a table that is made once a round, `<name>-<round>`, too.

    Arrays of any shape become flat lists; missing columns are empty.
    """
    schema = SCHEMAS[name.partition("-")[0]]
    return pa.table({field.name: _column(field, [row.get(field.name) for row in rows]) for field in schema}, schema)


def decode(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of an Arrow table; number lists come back as flat NumPy arrays of the column's dtype."""
    columns = {}
    for field in table.schema:
        column = table.column(field.name).combine_chunks()
        if pa.types.is_list(field.type) and not _is_text(field.type.value_type):
            values, offsets = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
            columns[field.name] = [values[a:b] for a, b in pairwise(offsets)]
        else:
            columns[field.name] = column.to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def read_bytes(uri: str) -> bytes:
    """The content of a local path or a URI. Raises OSError."""
    filesystem, path = _resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps its tables, checkpoints and report. `root` is an absolute path or a URI."""

    root: str

    @classmethod
    def at(cls, place: str) -> RunDirectory:
        """A run directory at a path or URI; a relative path is made absolute, since jobs run elsewhere."""
        return cls(place.rstrip("/") if "://" in place else str(Path(place).expanduser().resolve()))

    def uri(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def exists(self, *parts: str) -> bool:
        filesystem, path = _resolve(self.uri(*parts))
        return filesystem.get_file_info(path).type != fs.FileType.NotFound

    def read_bytes(self, *parts: str) -> bytes:
        return read_bytes(self.uri(*parts))

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a file whole or not at all."""
        filesystem, path = _resolve(self.uri(*parts))
        filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        local = isinstance(filesystem, fs.LocalFileSystem)
        # An object store shows an object when its upload is complete; a local file shows at once, so it is renamed.
        target = f"{path}.{uuid.uuid4().hex}.tmp" if local else path
        with filesystem.open_output_stream(target) as stream:
            stream.write(data)
        if local:
            filesystem.move(target, path)

    def read_json(self, *parts: str) -> Any:
        """The JSON of a file, or None where there is none."""
        return json.loads(self.read_bytes(*parts)) if self.exists(*parts) else None

    def write_json(self, value: Any, *parts: str) -> None:
        self.write_bytes(json.dumps(value, indent=1).encode(), *parts)

    def delete(self, *parts: str) -> None:
        """Delete a folder or file below the run, if it is there."""
        filesystem, path = _resolve(self.uri(*parts))
        kind = filesystem.get_file_info(path).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == fs.FileType.File:
            filesystem.delete_file(path)

    def names(self, *parts: str) -> list[str]:
        """Names in a folder, sorted; none where the folder is missing."""
        filesystem, path = _resolve(self.uri(*parts))
        try:
            infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        except FileNotFoundError:  # deleted by a run that starts a stage anew, while it was listed
            return []
        return sorted(info.base_name for info in infos)

    def shards(self, table: str) -> list[str]:
        """The shards that a table has, sorted."""
        return [name.removesuffix(".parquet") for name in self.names(table) if name.endswith(".parquet")]

    def write_shard(self, table: str, shard: str, rows: list[dict[str, Any]]) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(encode(table, rows), sink, compression="zstd")
        self.write_bytes(sink.getvalue().to_pybytes(), table, f"{shard}.parquet")

    def read_shard(self, table: str, shard: str, columns: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """All rows of a shard, failed ones too; none where the shard is missing."""
        if not self.exists(table, f"{shard}.parquet"):
            return []
        source = pa.BufferReader(self.read_bytes(table, f"{shard}.parquet"))
        return decode(pq.read_table(source, columns=list(columns) if columns else None))

    def read_good(self, table: str, shard: str, columns: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """The rows of a shard that did not fail, by image_id."""
        wanted = None if columns is None else ["image_id", "error", *columns]
        return {row["image_id"]: row for row in self.read_shard(table, shard, wanted) if not row["error"]}

    def rows(self, table: str, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """All rows of a table in shard order, a shard in memory at a time."""
        for shard in self.shards(table):
            yield from self.read_shard(table, shard, columns)


def _resolve(uri: str) -> tuple[fs.FileSystem, str]:
    if "://" in uri:
        return fs.FileSystem.from_uri(uri)
    return fs.LocalFileSystem(), uri


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_binary(kind)


def _column(field: pa.Field, values: list[Any]) -> pa.Array:
    if not pa.types.is_list(field.type):
        empty = {pa.string(): "", pa.binary(): b""}.get(field.type, 0)
        return pa.array([empty if value is None else value for value in values], field.type)
    if _is_text(field.type.value_type):
        return pa.array([[] if value is None else value for value in values], field.type)
    dtype = field.type.value_type.to_pandas_dtype()
    flat = [np.asarray([] if value is None else value, dtype).ravel() for value in values]
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in flat])]).astype(np.int32)
    joined = np.concatenate([*flat, np.empty(0, dtype)])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(joined, field.type.value_type))
