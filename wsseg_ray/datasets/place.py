"""Folders and files of a data set, on a disk or in an object store, by one set of names."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from pyarrow import fs

from wsseg_ray.errors import DatasetError
from wsseg_ray.storage import StorageError, entries, filesystem_of, is_uri, patiently, quoted, read_bytes, shown

PIECE = 1 << 22  # bytes of a file that are read at once


@dataclass(frozen=True, order=True)
class Place:
    """A folder or a file.

    Arguments:
        uri: an absolute path, or a URI of an object store (`s3://`, `gs://`); its query, such as
            `?endpoint_override=...`, stays at its end.
    """

    uri: str

    @classmethod
    def at(cls, text: str | Path) -> Place:
        """The place that a user wrote: `~` is the home folder, a relative path is made absolute."""
        if not is_uri(str(text)):
            return cls(str(Path(text).expanduser().absolute()))
        path, mark, query = str(text).partition("?")
        return cls(path.rstrip("/") + mark + query)

    def __truediv__(self, below: str) -> Place:
        if below in ("", "."):
            return self
        path, mark, query = self._parts()
        return Place(f"{path}/{quoted(below) if is_uri(self.uri) else below}{mark}{query}")

    def __str__(self) -> str:
        return shown(self.uri)

    @property
    def name(self) -> str:
        name = PurePosixPath(self._parts()[0]).name
        return unquote(name) if is_uri(self.uri) else name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Place:
        path, mark, query = self._parts()
        return Place(path.rpartition("/")[0] + mark + query)

    def entries(self) -> dict[str, bool]:
        """Names in a folder, by one scan, and whether each is a folder; none where the folder does not exist.

        Raises DatasetError where it cannot be read.
        """
        try:
            if not is_uri(self.uri):
                with os.scandir(self.uri) as found:
                    return {entry.name: entry.is_dir() for entry in found}
            filesystem, path = filesystem_of(self.uri)
            return patiently(filesystem, str(self), lambda: entries(filesystem, path))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, StorageError) as error:
            raise DatasetError(f"{self} cannot be read: {getattr(error, 'strerror', None) or error}") from error

    def files(self) -> list[str]:
        """Paths of all files below a folder, sorted, with `/`."""
        if not is_uri(self.uri):
            return sorted(_walk(self.uri))
        top = filesystem_of(self.uri)[1]
        return sorted(info.path[len(top) :].lstrip("/") for info in self._infos() if info.is_file)

    def changes(self) -> list[tuple[str, int, int]]:
        """Name, bytes and time of the last change, in nanoseconds, of this file or of each file in this folder."""
        filesystem, path = filesystem_of(self.uri)
        inside = fs.FileSelector(path, allow_not_found=True) if self.is_dir() else [path]
        infos = patiently(filesystem, str(self), lambda: filesystem.get_file_info(inside))
        return sorted((info.base_name, info.size, info.mtime_ns or 0) for info in infos if info.is_file)

    def is_dir(self) -> bool:
        return self._type() == fs.FileType.Directory

    def is_file(self) -> bool:
        return self._type() == fs.FileType.File

    def read_bytes(self) -> bytes:
        """The file's bytes. Raises DatasetError where it cannot be read."""
        try:
            return read_bytes(self.uri)
        except (OSError, StorageError) as error:
            raise DatasetError(f"{self} cannot be read: {getattr(error, 'strerror', None) or error}") from error

    def read_text(self) -> str:
        """A UTF-8 text file, with or without byte order mark. Raises DatasetError that names the file and line."""
        data = self.read_bytes()
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise DatasetError(f"{self} line {line}: not UTF-8 text; save the file as UTF-8") from error

    def lines(self) -> Iterator[str]:
        """The lines of a UTF-8 text file with their ends, read piece by piece. Raises DatasetError: see `read_text`."""
        try:
            with (
                io.BufferedReader(_Pieces(self.uri), PIECE) as file,
                io.TextIOWrapper(file, "utf-8-sig", newline="") as text,
            ):
                yield from text
        except UnicodeDecodeError:
            self.read_text()  # says which line
            raise
        except (OSError, StorageError) as error:
            raise DatasetError(f"{self} cannot be read: {getattr(error, 'strerror', None) or error}") from error

    def _parts(self) -> tuple[str, str, str]:
        return self.uri.partition("?") if is_uri(self.uri) else (self.uri, "", "")

    def _type(self) -> fs.FileType:
        filesystem, path = filesystem_of(self.uri)
        return patiently(filesystem, str(self), lambda: filesystem.get_file_info(path)).type

    def _infos(self) -> list[fs.FileInfo]:
        """Of all that lies below."""
        filesystem, path = filesystem_of(self.uri)
        selector = fs.FileSelector(path, recursive=True)
        return patiently(filesystem, str(self), lambda: filesystem.get_file_info(selector))


def _walk(top: str) -> Iterator[str]:
    for folder, _, files in os.walk(top):
        below = Path(folder).relative_to(top)
        yield from ((below / name).as_posix() for name in files)


class _Pieces(io.RawIOBase):
    """A file read piece by piece, each with the patience of `storage.patiently`."""

    def __init__(self, uri: str) -> None:
        self._filesystem, self._path = filesystem_of(uri)
        self._place, self._size = 0, patiently(self._filesystem, shown(uri), self._length)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = patiently(self._filesystem, self._path, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _length(self) -> int:
        with self._filesystem.open_input_file(self._path) as file:
            return int(file.size())

    def _read(self, most: int) -> bytes:
        with self._filesystem.open_input_file(self._path) as file:
            return bytes(file.read_at(min(most, self._size - self._place), self._place))
