"""The layout of WebDataset: tar files whose members belong together where their names are equal up to the first dot.

    train-000000.tar, val-000000.tar     in the folder, in `data` or in folders of splits; the name says the split
    a/1.jpg                              the photo; also jpeg, png, webp, bmp
    a/1.cls or a/1.txt                   its label: a name, several names separated by `;`, or a number
    a/1.json                             {"label": "cat"} or {"labels": ["cat", "dog"]}, names or numbers
    classes.txt                          optional, in the folder; line i names the number i - 1

Photos are read where they are, out of the middle of a tar file. So the file must not be compressed as a whole.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from wsseg_ray.datasets import Layout, Listing, read_classes, root_of
from wsseg_ray.datasets.labelled import PHOTO_SUFFIXES, Row, files_in, has_files, listing_of, named, split_of
from wsseg_ray.datasets.place import Place
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection
from wsseg_ray.sources import tar_part
from wsseg_ray.storage import filesystem_of

SUFFIX = ".tar"
AHEAD = 1 << 16  # bytes that are read at a time while members are listed


def read(section: DatasetSection, seed: int = 0) -> Listing:
    """All photos of the tar files. Raises DatasetError where a file is no tar file."""
    root = root_of(section)
    files = files_in(root, SUFFIX)
    names = read_classes(root)
    return listing_of(
        root, files[0], (row for file in files for row in _rows(file, split_of(file, root), names)), section
    )


def _rows(file: Place, split: str, names: list[str]) -> Iterator[Row]:
    for key, members in _samples(file).items():
        photos = [suffix for suffix in members if f".{suffix}" in PHOTO_SUFFIXES]
        if not photos:
            continue
        photo, labels, error = members[photos[0]], [], ""
        try:
            labels = _labels(members, names)
        except ValueError as problem:
            error = f"{file} sample {key}: {problem}"
        yield Row(f"{key}.{photos[0]}", labels, split, error, tar_part(file.uri, photo[0], photo[1]))


def _samples(file: Place) -> dict[str, dict[str, tuple[int, int, bytes]]]:
    """By key, by suffix: where a member's bytes begin, how many there are, and those of a member with labels."""
    filesystem, path = filesystem_of(file.uri)
    found: dict[str, dict[str, tuple[int, int, bytes]]] = {}
    try:
        with (
            filesystem.open_input_file(path) as source,
            io.BufferedReader(source, AHEAD) as ahead,
            tarfile.open(fileobj=ahead, mode="r:") as tar,
        ):
            for member in tar:
                if not member.isfile():
                    continue
                at = PurePosixPath(member.name)
                stem, _, suffix = at.name.partition(".")
                suffix = suffix.lower()
                said = tar.extractfile(member) if suffix in ("cls", "txt", "json") else None
                content = said.read() if said else b""
                found.setdefault(str(at.parent / stem), {})[suffix] = (member.offset_data, member.size, content)
    except (tarfile.TarError, OSError) as error:
        raise DatasetError(f"{file} is not an uncompressed tar file that can be read: {error}") from error
    return found


def _labels(members: dict[str, tuple[int, int, bytes]], names: list[str]) -> list[str]:
    """The labels of a sample. Raises ValueError where there are none, or not in this form."""
    if "json" in members:
        data: Any = json.loads(members["json"][2])
        found = data.get("labels", data.get("label")) if isinstance(data, dict) else None
        if found is None:
            raise ValueError('its json has neither "label" nor "labels"')
        return named(found, names)
    text = next((members[suffix][2].decode() for suffix in ("cls", "txt") if suffix in members), None)
    if text is None:
        raise ValueError("it has no labels: no member .cls, .txt or .json")
    words = [word.strip() for word in text.split(";") if word.strip()]
    return named([int(word) if word.isdecimal() else word for word in words], names)


LAYOUT = Layout(read, recognises=lambda root: has_files(root, SUFFIX))
