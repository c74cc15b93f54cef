"""The bytes of a photo, wherever it lies: a file, an object of a store, a part of a larger file, or a web address.

/data/a.jpg, s3://bucket/a.jpg, gs://bucket/a.jpg   a file or an object
https://host/a.jpg                                  a web address
x.tar#bytes=1536+20480                              20,480 bytes of a file, from byte 1,536
x.parquet#row=7&column=image.bytes                  a cell of a Parquet file
"""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from functools import lru_cache
from hashlib import blake2b

import pyarrow.parquet as pq

from wsseg_ray import storage
from wsseg_ray.storage import StorageError, filesystem_of, patiently, shown

MOST_BYTES = 500_000_000  # of a photo or mask
WEB_TRIES = 4
_RANGE = re.compile(r"(.+\.tar(?:\?.*)?)#bytes=(\d+)\+(\d+)$")
_CELL = re.compile(r"(.+\.parquet(?:\?.*)?)#row=(\d+)&column=(.+)$")


def tar_part(uri: str, offset: int, size: int) -> str:
    """The place of `size` bytes of a tar file, from byte `offset`."""
    return f"{uri}#bytes={offset}+{size}"


def parquet_cell(uri: str, row: int, column: str) -> str:
    """The place of a cell of a Parquet file; `column` is a path, such as `image.bytes`."""
    return f"{uri}#row={row}&column={column}"


def is_web(place: str) -> bool:
    return place.startswith(("https://", "http://"))


def read_bytes(place: str) -> bytes:
    """The bytes of a photo or mask.

    A cell costs the reading of its column in a row group, which the next cells share.
    Raises OSError where it cannot be read, StorageError where the storage failed for some minutes.
    """
    if is_web(place):
        return _downloaded(place)
    if found := _RANGE.match(place):
        return _range(found[1], int(found[2]), int(found[3]))
    if found := _CELL.match(place):
        return _cell(found[1], int(found[2]), found[3])
    return storage.read_bytes(place, MOST_BYTES)


def digest(data: bytes) -> str:
    """What tells a file from others: 16 hex digits of BLAKE2b. Costs about a millisecond per megabyte."""
    return blake2b(data, digest_size=8).hexdigest()


def _downloaded(address: str) -> bytes:
    """The content of a web address. An error of the server, or none at all, is tried again."""
    request = urllib.request.Request(address, headers={"User-Agent": "wsseg_ray"})
    for pause in (*(2.0**n for n in range(WEB_TRIES - 1)), None):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                data: bytes = answer.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:  # the client's fault, or no such photo
                raise OSError(f"{shown(address)}: the server answers {error.code} {error.reason}") from error
            problem: Exception = error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            problem = error
        else:
            if len(data) > MOST_BYTES:
                raise OSError(f"{shown(address)}: more than {MOST_BYTES // 10**6} MB")
            return data
        if pause is not None:
            time.sleep(pause)
    raise OSError(f"{shown(address)}: cannot be read: {problem}") from problem


def _range(uri: str, offset: int, size: int) -> bytes:
    filesystem, path = filesystem_of(uri)

    def read() -> bytes:
        with filesystem.open_input_file(path) as file:
            return file.read_at(size, offset) if offset + size <= file.size() else b""

    data = patiently(filesystem, shown(uri), read)
    if len(data) < size:
        raise OSError(f"{shown(uri)} ends before byte {offset + size}")
    return data


def _cell(uri: str, row: int, column: str) -> bytes:
    if row < 0 or row >= (ends := _row_groups(uri))[-1]:
        raise StorageError(f"{shown(uri)} has {ends[-1]} rows, and no row {row}: the file has changed")
    group = next(k for k, end in enumerate(ends) if row < end)
    value = _column(uri, group, column)[row - (ends[group - 1] if group else 0)].as_py()
    for name in column.split(".")[1:]:
        value = value and value[name]
    if not isinstance(value, bytes):
        raise OSError(f"{shown(uri)} row {row}: no bytes in {column}")
    return value


@lru_cache(maxsize=64)
def _row_groups(uri: str) -> list[int]:
    """The number of the first row after each row group."""
    filesystem, path = filesystem_of(uri)

    def read() -> list[int]:
        with filesystem.open_input_file(path) as file:
            about, ends = pq.read_metadata(file), [0]
        for group in range(about.num_row_groups):
            ends.append(ends[-1] + about.row_group(group).num_rows)
        return ends[1:] or [0]

    return patiently(filesystem, shown(uri), read)


@lru_cache(maxsize=1)  # photos of a shard lie one after the other, and a row group may have a hundred megabytes
def _column(uri: str, group: int, column: str):  # type: ignore[no-untyped-def]  # an Arrow array, which has no types
    filesystem, path = filesystem_of(uri)

    def read():  # type: ignore[no-untyped-def]
        with filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file).read_row_group(group, columns=[column], use_threads=False).column(0)

    return patiently(filesystem, shown(uri), read)
