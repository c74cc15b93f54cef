"""The run directory: tables with one row per photo, cut into shards.

A table is a folder of Parquet files, one file per shard. A shard is a fixed group of photos (`tables.shard_size`), the
same in every table. So a stage joins tables file by file, works shard by shard, and the files show which shards are
done. A file is written completely or not at all, and a shard that runs again writes the same file: no row is there
twice.

What a stage writes is its result. It lies in a folder whose name is the fingerprint of all that made it, such as
`scores/3f2a91bc04d7e6f5`. So another setting writes elsewhere: nothing is mixed, also where a task of an older run
writes late, and nothing is deleted. `run.json` says which results the run's recipe has; `uri` puts their fingerprints
into paths.

A run directory is local or on an object store (`s3://`, `gs://`), through pyarrow's filesystems. A failing call to
storage is repeated for some minutes. If it still fails, `StorageError` is raised and no photo is recorded as failed.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from wsseg_ray.tables import R, Table, columns_of, decode, encode, schema

ENTRY = "stage.json"  # of a result: what its stage says of it
COUNTS = "wsseg.counts"  # at the end of a shard's file: rows, and failed rows
SMALL = 1 << 18  # bytes of a file that is read whole
READERS = 16  # ends of files that are read at the same time
DRAFT_BYTES = 1 << 26  # of an object that is held in memory before its upload; a larger one lies on the disk
COPIED_BYTES = 1 << 22  # of a draft, at a time
PATIENCE = 300.0  # seconds that storage may fail before a run gives up
# Errors of a local or mounted disk that may pass; all others are final.
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
# Final errors of an object store, in Arrow's words; all others may pass.
_FINAL = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_KEY")
# Errors caused by a file's name; then the photo failed, not the storage.
_NAMING = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}

T = TypeVar("T")


class StorageError(RuntimeError):
    """Storage that cannot be written, or failed for longer than PATIENCE. The message names the place."""


def read_bytes(uri: str, most: int | None = None) -> bytes:
    """The content of a local path or a URI.

    Arguments:
        most: bytes that a file may have; None: any number.
    Raises OSError where it cannot be read, is no regular file (a pipe or a device could be read for ever) or is too
    large, StorageError where the storage failed for longer than PATIENCE.
    """
    filesystem, path = filesystem_of(uri)
    if isinstance(filesystem, fs.LocalFileSystem) and not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError(f"{path} is no regular file")

    def read() -> tuple[int, bytes]:
        with filesystem.open_input_file(path) as file:
            size = file.size()
            return size, b"" if most is not None and size > most else file.read()

    size, data = patiently(filesystem, shown(uri), read)
    if most is not None and size > most:  # asked here, since an error of a store is tried again
        raise OSError(f"{shown(uri)} has {size // 10**6} MB, more than {most // 10**6}")
    return data


def shown(uri: str) -> str:
    """A path or URI for messages: without the user and password of `s3://user:password@bucket`."""
    return re.sub(r"://[^/?]*@", "://", uri)


@dataclass(frozen=True)
class RunDirectory:
    """The directory of a run's tables, checkpoints and report.

    Arguments:
        root: an absolute path or a URI; `?endpoint_override=...` (for MinIO, for example) stays at the end of a URI.
        results: the fingerprint of the result in use, by its folder. `uri` puts it behind the folder.
    """

    root: str
    results: dict[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def at(cls, place: str) -> RunDirectory:
        """A run directory at a path or URI; a relative path is made absolute, because jobs run in other folders.

        Reads nothing; `now` has the results.
        """
        if not is_uri(place):
            return cls(str(Path(place).expanduser().resolve()))
        folder, mark, query = place.partition("?")
        return cls(folder.rstrip("/") + mark + query)

    def now(self) -> RunDirectory:
        """The same directory, with the results that its `run.json` names now; with none where there is no such file."""
        return replace(self, results=(self.read_json("run.json") or {}).get("results", {}))

    @property
    def is_local(self) -> bool:
        return not is_uri(self.root)

    def uri(self, *parts: str) -> str:
        if parts and parts[0] in self.results:
            parts = (parts[0], self.results[parts[0]], *parts[1:])
        if self.is_local:
            return "/".join((self.root, *parts))
        folder, mark, query = self.root.partition("?")
        return "/".join((folder, *map(quoted, parts))) + mark + query

    def exists(self, *parts: str) -> bool:
        filesystem, path = filesystem_of(self.uri(*parts))
        info = patiently(filesystem, path, lambda: filesystem.get_file_info(path))
        return info.type != fs.FileType.NotFound

    def read_bytes(self, *parts: str) -> bytes:
        return read_bytes(self.uri(*parts))

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a file completely or not at all; a written file survives a power failure.

        Raises StorageError where it cannot be written, OSError where its name is the cause.
        """
        self.write_stream(lambda stream: stream.write(data), *parts)

    def write_stream(self, fill: Callable[[Any], object], *parts: str) -> None:
        """Write a file of any size as `write_bytes` does: `fill` writes to a stream, again where that fails."""
        filesystem, path = filesystem_of(self.uri(*parts))
        write = _write_local if isinstance(filesystem, fs.LocalFileSystem) else _write_object
        try:
            patiently(filesystem, path, lambda: write(filesystem, path, fill))
        except OSError as error:
            if error.errno in _NAMING:
                raise
            raise StorageError(f"{shown(self.uri(*parts))} cannot be written: {error.strerror or error}") from error

    def read_json(self, *parts: str) -> Any:
        """The JSON of a file, or None where there is none."""
        try:
            return json.loads(self.read_bytes(*parts))
        except FileNotFoundError:
            return None

    def write_json(self, value: Any, *parts: str) -> None:
        self.write_bytes(json.dumps(value, indent=1).encode(), *parts)

    def entry(self, folder: str) -> dict[str, Any] | None:
        """What a stage says of its result in a folder; None where it has not begun: `state` (running or done) and, once
        it is done, `rows`, `failed`, `worked`, `seconds`, `busy` and `task`."""
        return cast("dict[str, Any] | None", self.read_json(folder, ENTRY))

    def write_entry(self, entry: dict[str, Any], folder: str) -> None:
        self.write_json(entry, folder, ENTRY)

    def delete(self, *parts: str) -> None:
        """Delete a folder or file below the run, if it is there."""
        filesystem, path = filesystem_of(self.uri(*parts))

        def delete() -> None:
            kind = filesystem.get_file_info(path).type
            if kind == fs.FileType.Directory:
                filesystem.delete_dir(path)
            elif kind == fs.FileType.File:
                filesystem.delete_file(path)

        with suppress(FileNotFoundError):  # gone already, or a folder of Google's store, which is no object
            patiently(filesystem, path, delete)

    def names(self, *parts: str) -> list[str]:
        """Names in a folder, sorted; none where the folder is missing."""
        filesystem, path = filesystem_of(self.uri(*parts))
        try:
            return sorted(patiently(filesystem, path, lambda: entries(filesystem, path)))
        except FileNotFoundError:  # deleted during the listing, by a run that starts a stage again
            return []

    def is_file(self, *parts: str) -> bool:
        filesystem, path = filesystem_of(self.uri(*parts))
        return patiently(filesystem, path, lambda: filesystem.get_file_info(path)).is_file

    def sizes(self, *parts: str) -> dict[str, int]:
        """Bytes of each file below a folder, by its path from there; none where the folder is missing."""
        filesystem, path = filesystem_of(self.uri(*parts))
        selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
        infos = patiently(filesystem, path, lambda: filesystem.get_file_info(selector))
        return {info.path[len(path) :].lstrip("/"): info.size for info in infos if info.is_file}

    def shards(self, table: str, split: str = "") -> list[str]:
        """The shards of a table, sorted: all, or only of the split `train` or `val`."""
        files = [name for name in self.names(table) if name.startswith(split) and name.endswith(".parquet")]
        return [name.removesuffix(".parquet") for name in files]

    def write_shard(self, table: Table[R], shard: str, rows: Sequence[R]) -> None:
        """Write the rows of a shard. How many there are and how many failed stands at the end of the file, too."""
        failed = sum(not row.is_good for row in rows)
        data = _encoded(table.row, [rows], {COUNTS: json.dumps([len(rows), failed])})
        self.write_bytes(data, table.folder, f"{shard}.parquet")

    def write_groups(self, row: type[R], groups: Sequence[Sequence[R]], *parts: str) -> None:
        """Write one file with several groups of rows, of which each can be read alone."""
        self.write_bytes(_encoded(row, groups, {}), *parts)

    def read_group(self, row: type[R], group: int, *parts: str) -> list[R]:
        """One group of rows of a file; reads the end of the file and that group."""
        return decode(row, self._ranged(lambda file: file.read_row_group(group, use_threads=False), *parts))

    def read_shard(self, table: Table[R], shard: str, columns: Iterable[str] | None = None) -> list[R]:
        """All rows of a shard, failed rows too; none if the shard is missing.

        Of a large file only the wanted columns are read.
        """
        wanted = None if columns is None else columns_of(table.row, columns)

        # Without Arrow's threads: where they still end while the process ends, they can abort it (Arrow's issue 34314).
        def read(file: pq.ParquetFile) -> pa.Table:
            return file.read(columns=wanted, use_threads=False)

        try:
            return decode(table.row, self._ranged(read, table.folder, f"{shard}.parquet", whole=columns is None))
        except FileNotFoundError:
            return []

    def counts(self, table: Table[Any], known: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """How many rows each shard of a table has, and how many of them failed.

        Arguments:
            known: the counts of some shards. Of others the end of the file is read, several at a time.
        """

        def count(shard: str) -> tuple[int, int]:
            def read(file: pq.ParquetFile) -> Any:
                return json.loads(file.metadata.metadata[COUNTS.encode()])

            rows, failed = known.get(shard) or self._ranged(read, table.folder, f"{shard}.parquet")
            return rows, failed

        names = self.shards(table.folder)
        with ThreadPoolExecutor(READERS) as pool:
            return dict(zip(names, pool.map(count, names), strict=True))

    def _ranged(self, read: Callable[[pq.ParquetFile], T], *parts: str, whole: bool = False) -> T:
        """What `read` takes from a Parquet file. A small file is read whole, which is one request instead of several.

        Arguments:
            whole: whether a large file is read whole, too.
        Raises FileNotFoundError where there is none.
        """
        uri = self.uri(*parts)
        filesystem, path = filesystem_of(uri)

        def attempt() -> T:
            with filesystem.open_input_file(path) as file:
                source = pa.BufferReader(file.read()) if whole or file.size() < SMALL else file
                return read(pq.ParquetFile(source, pre_buffer=not self.is_local))

        return patiently(filesystem, shown(uri), attempt)

    def read_good(self, table: Table[R], shard: str, columns: Iterable[str] | None = None) -> dict[str, R]:
        """The rows of a shard that did not fail, by image_id."""
        wanted = None if columns is None else ["image_id", "error", *columns]
        return {row.image_id: row for row in self.read_shard(table, shard, wanted) if not row.error}

    def rows(self, table: Table[R], columns: Iterable[str] | None = None) -> Iterator[R]:
        """All rows of a table in the order of its shards. One shard is in memory at a time."""
        for shard in self.shards(table.folder):
            yield from self.read_shard(table, shard, columns)


def _encoded(row: type[R], groups: Sequence[Sequence[R]], about: dict[str, str]) -> bytes:
    """Rows as the bytes of a Parquet file, in one row group per group.

    Arguments:
        about: what else the end of the file says.
    """
    sink = pa.BufferOutputStream()
    # A dictionary of numbers that hardly repeat costs twice the time to write and to read; a float's bytes that lie
    # apart, first bytes with first bytes, take less space. Numbers of half precision, which are feature maps, stay as
    # they are: compressed they take 83 % of the space, but three times as long to write.
    kinds = _kinds(schema(row)).items()
    with pq.ParquetWriter(
        sink,
        schema(row),
        compression={path: "none" if kind == pa.float16() else "zstd" for path, kind in kinds},
        use_dictionary=[path for path, kind in kinds if pa.types.is_string(kind)],
        use_byte_stream_split=[path for path, kind in kinds if kind in (pa.float32(), pa.float64())],
    ) as writer:
        for rows in groups:
            writer.write_table(encode(row, rows), row_group_size=max(1, len(rows)))
        writer.add_key_value_metadata(about)
    return cast("bytes", sink.getvalue().to_pybytes())


def _kinds(columns: pa.Schema) -> dict[str, pa.DataType]:
    """The types of the values of each column, by the name that Parquet gives it."""
    lists = {column.name for column in columns if pa.types.is_large_list(column.type)}
    return {
        f"{column.name}.list.element" if column.name in lists else column.name: (
            column.type.value_type if column.name in lists else column.type
        )
        for column in columns
    }


def is_uri(place: str) -> bool:
    """Whether a place is a URI; else it is a path."""
    return "://" in place


def quoted(path: str) -> str:
    """A path as a part of a URI: a file's name with `?`, `#` or `%` in it must say nothing to the store."""
    return re.sub(r"[%?#\x00-\x1f\x7f]", lambda found: f"%{ord(found[0]):02X}", path)


def filesystem_of(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path in it."""
    if not is_uri(uri):
        return fs.LocalFileSystem(), uri
    scheme, _, rest = uri.partition("://")
    if scheme not in ("s3", "gs"):
        return fs.FileSystem.from_uri(uri)
    path, mark, query = rest.partition("?")
    bucket, _, below = path.partition("/")
    filesystem, bucket = _object_store(f"{scheme}://{bucket}{mark}{query}")
    return filesystem, f"{bucket}/{unquote(below)}"


def entries(filesystem: fs.FileSystem, path: str) -> dict[str, bool]:
    """Names in a folder, and whether each is a folder; none where there is no such folder."""
    # In Google Cloud Storage a folder is no object, and pyarrow's listing of one level leaves it out.
    deep = filesystem.type_name == "gcs"
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=deep))
    if not deep:
        return {info.base_name: info.type == fs.FileType.Directory for info in infos}
    below = [(*info.path[len(path) :].strip("/").partition("/"), info.type) for info in infos]
    return {name: bool(slash) or kind == fs.FileType.Directory for name, slash, _, kind in below}


@lru_cache
def _object_store(bucket: str) -> tuple[fs.FileSystem, str]:
    # Cached, because creating one asks the store for the location of the bucket. With a delayed opening a small object
    # is written by one request instead of three.
    delayed = "" if bucket.startswith("gs:") else f"{'&' if '?' in bucket else '?'}allow_delayed_open=true"
    return fs.FileSystem.from_uri(bucket + delayed)


def patiently(filesystem: fs.FileSystem, place: str, call: Callable[[], T]) -> T:
    """The result of `call`, repeated for up to PATIENCE seconds while storage fails with errors that may pass."""
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
        time.sleep(pause * random.uniform(0.5, 1))  # so that a thousand tasks do not retry at the same time
        pause = min(2 * pause, 30.0)


def _write_local(_: fs.FileSystem, path: str, fill: Callable[[Any], object]) -> None:
    # A local file is visible at once, so it gets its name only when it is complete.
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(target)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def _write_object(filesystem: fs.FileSystem, path: str, fill: Callable[[Any], object]) -> None:
    # An object is visible only when its upload is complete. pyarrow completes the upload also when an error ends the
    # writing, so all that is to be written must be there before.
    with tempfile.SpooledTemporaryFile(max_size=DRAFT_BYTES) as draft:
        fill(draft)
        draft.seek(0)
        with filesystem.open_output_stream(path) as stream:
            shutil.copyfileobj(draft, stream, COPIED_BYTES)
