"""The layout of a folder per class, as many people keep their photos.

    cats/a.jpg, cats/more/b.jpg, dogs/c.jpg                 the folder's name is the photo's label
    train/cats/a.jpg, val/cats/b.jpg                        the same for each split; also `validation` or `test`
    classes.txt, masks/cats/a.png                           optional, see the layout `folder`

A photo with several labels needs a file of labels: the layout `folder`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from wsseg_ray.datasets import Layout, Listing, names_in, root_of
from wsseg_ray.datasets.labelled import PHOTO_SUFFIXES, Row, listing_of, split_in
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection

MASKS = "masks"


def read(section: DatasetSection, seed: int = 0) -> Listing:
    """All photos in folders of classes. Raises DatasetError where there is no such folder."""
    root = root_of(section)
    rows = [row for split, folder in _folders(root) for row in _rows(root, split, folder)]
    if not rows:
        raise DatasetError(f"dataset.root: {root} has no folder with photos in it; each folder is a class")
    return listing_of(root, root, rows, section)


def _folders(root: Path) -> Iterator[tuple[str, Path]]:
    """The folders of classes, each with its split or ""."""
    folders = [root / name for name in sorted(names_in(root)) if (root / name).is_dir() and _counts(name)]
    splits = [folder for folder in folders if split_in(folder.name)]
    if splits and len(splits) == len(folders):
        for folder in splits:
            yield from ((split_in(folder.name), path) for _, path in _folders(folder))
        return
    yield from (("", folder) for folder in folders)


def _counts(name: str) -> bool:
    return name != MASKS and not name.startswith(".")


def _rows(root: Path, split: str, folder: Path) -> Iterator[Row]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(PHOTO_SUFFIXES) and not name.startswith("."):
                yield Row((Path(place) / name).relative_to(root).as_posix(), [folder.name], split)


def _recognises(root: Path) -> bool:
    return any(row for split, folder in _folders(root) for row in _rows(root, split, folder))


LAYOUT = Layout(read, recognises=_recognises)
