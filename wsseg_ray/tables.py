"""The run directory: tables with a row a photo, cut into shards.

A table is a folder of Parquet files, one a shard. A shard is a fixed group of photos (`plan_shards`), the same in
every table, so that a stage joins tables file to file, works shard by shard, and resumes by looking which files are
there. A file appears whole or not at all, and running a shard again writes the same file: a row is there once.

A run directory is local or on an object store (`s3://`, `gs://`), through pyarrow's filesystems. Storage that fails for
a while is asked again; what then still cannot be written is no photo's fault: `StorageError`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

MAX_SHARD_ROWS = 32  # bounds what one task holds and what a kill repeats

PATIENCE = 300.0  # seconds that storage may fail before a run gives up
# What a local or mounted disk says when it fails for a while; everything else is meant as it is said.
_PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
}
# What an object store says and means, as Arrow words it.
_FINAL = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_KEY")
# A file's name can be at fault; then it is the photo that has it.
_NAMING = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}

T = TypeVar("T")

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
            ("photo_logits", _floats),  # (C,) of a val photo as the one hypothesis: all that its row holds
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


def shard_size(count: int) -> int:
    """How many of `count` photos a shard holds: at most 32, and so few that there are 32 shards, but at least 4."""
    return min(MAX_SHARD_ROWS, max(4, math.ceil(count / 32)))


def plan_shards(count: int) -> list[range]:
    """Cut `count` photos into shards of equal size.

    It depends on the number of photos alone, so every machine cuts the same way.
    """
    size = shard_size(count)
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


class StorageError(RuntimeError):
    """Storage that cannot be written, or failed for longer than PATIENCE. The message names the place."""


def read_bytes(uri: str) -> bytes:
    """The content of a local path or a URI.

    Raises OSError where it cannot be read, StorageError where its storage failed for longer than PATIENCE.
    """
    filesystem, path = _resolve(uri)

    def read() -> bytes:
        with filesystem.open_input_stream(path) as stream:
            return stream.read()

    return _patiently(filesystem, shown(uri), read)


def shown(uri: str) -> str:
    """A path or URI as people may see it: without the user and password of `s3://user:password@bucket`."""
    return re.sub(r"://[^/?]*@", "://", uri)


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps its tables, checkpoints and report.

    `root` is an absolute path or a URI; a URI's `?endpoint_override=...` (MinIO and the like) stays at its end.
    """

    root: str

    @classmethod
    def at(cls, place: str) -> RunDirectory:
        """A run directory at a path or URI; a relative path is made absolute, since jobs run elsewhere."""
        if "://" not in place:
            return cls(str(Path(place).expanduser().resolve()))
        folder, mark, query = place.partition("?")
        return cls(folder.rstrip("/") + mark + query)

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    def uri(self, *parts: str) -> str:
        if self.is_local:
            return "/".join((self.root, *parts))
        folder, mark, query = self.root.partition("?")
        return "/".join((folder, *parts)) + mark + query

    def exists(self, *parts: str) -> bool:
        filesystem, path = _resolve(self.uri(*parts))
        info = _patiently(filesystem, path, lambda: filesystem.get_file_info(path))
        return info.type != fs.FileType.NotFound

    def read_bytes(self, *parts: str) -> bytes:
        return read_bytes(self.uri(*parts))

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a file whole or not at all; when it is there, it survives a machine that loses power.

        Raises StorageError where it cannot be written, OSError where that is its name's fault.
        """
        filesystem, path = _resolve(self.uri(*parts))
        write = _write_local if isinstance(filesystem, fs.LocalFileSystem) else _write_object
        try:
            _patiently(filesystem, path, lambda: write(filesystem, path, data))
        except OSError as error:
            if error.errno in _NAMING:
                raise
            raise StorageError(f"{shown(self.uri(*parts))} cannot be written: {error.strerror or error}") from error

    def read_json(self, *parts: str) -> Any:
        """The JSON of a file, or None where there is none."""
        return json.loads(self.read_bytes(*parts)) if self.exists(*parts) else None

    def write_json(self, value: Any, *parts: str) -> None:
        self.write_bytes(json.dumps(value, indent=1).encode(), *parts)

    def delete(self, *parts: str) -> None:
        """Delete a folder or file below the run, if it is there."""
        filesystem, path = _resolve(self.uri(*parts))

        def delete() -> None:
            kind = filesystem.get_file_info(path).type
            if kind == fs.FileType.Directory:
                filesystem.delete_dir(path)
            elif kind == fs.FileType.File:
                filesystem.delete_file(path)

        _patiently(filesystem, path, delete)

    def names(self, *parts: str) -> list[str]:
        """Names in a folder, sorted; none where the folder is missing."""
        filesystem, path = _resolve(self.uri(*parts))
        try:
            selector = fs.FileSelector(path, allow_not_found=True)
            infos = _patiently(filesystem, path, lambda: filesystem.get_file_info(selector))
        except FileNotFoundError:  # deleted by a run that starts a stage anew, while it was listed
            return []
        return sorted(info.base_name for info in infos)

    def shards(self, table: str, split: str = "") -> list[str]:
        """The shards that a table has, sorted: all, or those of the split `train` or `val`."""
        files = [name for name in self.names(table) if name.startswith(split) and name.endswith(".parquet")]
        return [name.removesuffix(".parquet") for name in files]

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
    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    scheme, _, rest = uri.partition("://")
    if scheme not in ("s3", "gs"):
        return fs.FileSystem.from_uri(uri)
    path, mark, query = rest.partition("?")
    bucket, _, below = path.partition("/")
    filesystem, bucket = _object_store(f"{scheme}://{bucket}{mark}{query}")
    return filesystem, f"{bucket}/{below}"


@lru_cache
def _object_store(bucket: str) -> tuple[fs.FileSystem, str]:
    # Kept, because making one asks the store where its bucket lies.
    return fs.FileSystem.from_uri(bucket)


def _patiently(filesystem: fs.FileSystem, place: str, call: Callable[[], T]) -> T:
    """What `call` returns, asked again for PATIENCE while its storage fails in a way that passes."""
    local = isinstance(filesystem, fs.LocalFileSystem)
    start, pause = time.monotonic(), 0.5
    while True:
        try:
            return call()
        except FileNotFoundError:
            raise
        except OSError as error:
            passing = error.errno in _PASSING if local else not any(word in str(error) for word in _FINAL)
            if not passing:
                raise
            if time.monotonic() - start > PATIENCE:
                raise StorageError(f"{place}: storage failed for {PATIENCE:.0f} s: {error}") from error
        time.sleep(pause * random.uniform(0.5, 1))  # so that a thousand tasks do not come back at once
        pause = min(2 * pause, 30.0)


def _write_local(_: fs.FileSystem, path: str, data: bytes) -> None:
    # A local file shows at once, so it is renamed when it is whole.
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(target)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def _write_object(filesystem: fs.FileSystem, path: str, data: bytes) -> None:
    # An object shows when its upload is complete.
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


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
