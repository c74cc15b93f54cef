"""Photos, and rows about photos, in temporary files instead of in memory: for listings of ten million photos."""

from __future__ import annotations

import json
import pickle
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import Generic, TypeVar

from wsseg_ray.errors import DatasetError

TOGETHER = 1024  # items that are written and read at once
CACHE_KB = 65_536  # of SQLite: what `Photos` holds in memory at most

T = TypeVar("T")


@dataclass(frozen=True)
class Photo:
    """One photo of a data set.

    Arguments:
        image_id: unique in its listing. Safe as a file name only if `error` is empty.
        uri: where the photo lies: an absolute path, a URI, or a part of a file (`storage.read_bytes`).
        labels: sorted indices into the listing's classes, from 0.
        split: "train" or "val".
        mask_uri: where the true mask lies, or "".
        error: why the photo cannot be used, or "".
    """

    image_id: str
    uri: str
    labels: tuple[int, ...]
    split: str
    mask_uri: str = ""
    error: str = ""


class Spool(Generic[T]):
    """Items in their order, in a temporary file; they may be gone through many times."""

    def __init__(self, items: Iterable[T]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it goes when this object goes)
        rest = iter(items)
        while some := list(islice(rest, TOGETHER)):
            pickle.dump(some, self._file, pickle.HIGHEST_PROTOCOL)
        self._end = self._file.tell()

    def __iter__(self) -> Iterator[T]:
        place = 0
        while place < self._end:
            self._file.seek(place)
            some = pickle.load(self._file)
            place = self._file.tell()
            yield from some


class Photos:
    """The photos of a listing, first those of `train`, then those of `val`, each by image_id; in a temporary file.

    A name that several files share, as `a.jpg` and `a.png`, gets their suffix: `a_jpg` and `a_png`.

    Arguments:
        photos: in any order. Those that have neither a label nor an error are left out.
        limit: photos of each split that are taken: number `floor(i n / limit)` of n; None: all.
    Raises DatasetError where two photos have one name.
    Costs some 7 microseconds and 300 bytes of temporary disk per photo, twice that while it sorts.
    """

    def __init__(self, photos: Iterable[Photo], limit: int | None = None) -> None:
        # A database without a name lies in a temporary file, which goes when it is closed.
        self._data = sqlite3.connect("", isolation_level=None)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KB}", "temp_store = FILE"):
            self._data.execute(f"PRAGMA {setting}")
        self._data.execute("CREATE TABLE given (place INTEGER PRIMARY KEY, split TEXT, name BLOB, photo TEXT)")
        self._data.execute("BEGIN")
        self._data.executemany("INSERT INTO given (split, name, photo) VALUES (?, ?, ?)", map(_stored, photos))
        self._data.execute("COMMIT")
        self._data.execute("CREATE INDEX by_name ON given (name)")
        for name in self._shared():
            self._add_suffix(name)
        for name in self._shared():
            one, other = (found for _, found in islice(self._called(name), 2))
            raise DatasetError(
                f"image id {one.image_id!r} occurs twice: {one.uri} in {one.split}, {other.uri} in {other.split}; "
                "every photo needs its own id and belongs to one split"
            )
        self._sort(limit)

    def __len__(self) -> int:
        return int(self._data.execute("SELECT COUNT(*) FROM sorted").fetchone()[0])

    def __iter__(self) -> Iterator[Photo]:
        return (_photo(text) for (text,) in self._data.execute("SELECT photo FROM sorted ORDER BY rank"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Iterable) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def _shared(self) -> list[bytes]:
        """The names that more than one photo has."""
        return [name for (name,) in self._data.execute("SELECT name FROM given GROUP BY name HAVING COUNT(*) > 1")]

    def _called(self, name: bytes) -> list[tuple[int, Photo]]:
        rows = self._data.execute("SELECT place, photo FROM given WHERE name = ? ORDER BY place", (name,))
        return [(place, _photo(text)) for place, text in rows]

    def _add_suffix(self, name: bytes) -> None:
        found = self._called(name)
        suffixes = [photo.uri.partition("?")[0].rpartition(".")[2] for _, photo in found]
        if len(set(suffixes)) == len(found):
            for (place, photo), suffix in zip(found, suffixes, strict=True):
                own = _stored(replace(photo, image_id=f"{photo.image_id}_{suffix}"))
                self._data.execute("UPDATE given SET split = ?, name = ?, photo = ? WHERE place = ?", (*own, place))

    def _sort(self, limit: int | None) -> None:
        self._data.execute("CREATE TABLE sorted (rank INTEGER PRIMARY KEY, split TEXT, photo TEXT)")
        self._data.execute(
            "INSERT INTO sorted (split, photo) SELECT split, photo FROM given WHERE split != '' ORDER BY split, name"
        )
        self._data.execute("DROP TABLE given")
        if limit is not None:
            self._spread(limit)

    def _spread(self, limit: int) -> None:
        """Keep `limit` photos of each split, evenly spread."""
        self._data.execute("CREATE TABLE kept (rank INTEGER PRIMARY KEY)")
        first = 1
        for (count,) in self._data.execute("SELECT COUNT(*) FROM sorted GROUP BY split ORDER BY split").fetchall():
            few = min(limit, count)
            ranks = ((first + i * count // few,) for i in range(few))
            self._data.executemany("INSERT INTO kept VALUES (?)", ranks)
            first += count
        self._data.execute("DELETE FROM sorted WHERE rank NOT IN (SELECT rank FROM kept)")


def digest_of(photos: Iterable[Photo]) -> str:
    """32 hex digits that stand for photos in their order: all that is said of them. Costs 6 microseconds per photo."""
    found = blake2b(digest_size=16)
    for photo in photos:
        found.update(_text(photo).encode() + b"\n")
    return found.hexdigest()


def _stored(photo: Photo) -> tuple[str, bytes, str]:
    """Split, or "" of a photo that is of no use; name, whose bytes are in the order of its letters; and the photo."""
    used = photo.split if photo.labels or photo.error else ""
    return used, photo.image_id.encode("utf-8", "surrogatepass"), _text(photo)


def _text(photo: Photo) -> str:
    return json.dumps([photo.image_id, photo.uri, photo.labels, photo.split, photo.mask_uri, photo.error])


def _photo(text: str) -> Photo:
    image_id, uri, labels, *more = json.loads(text)
    return Photo(image_id, uri, tuple(labels), *more)
