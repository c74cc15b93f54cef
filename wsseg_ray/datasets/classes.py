"""The layout of a folder per class, as many people keep their photos.

    cats/a.jpg, cats/more/b.jpg, dogs/c.jpg                 the folder's name is the photo's label
    train/cats/a.jpg, val/cats/b.jpg                        the same for each split; also `validation` or `test`
    classes.txt, masks/cats/a.png                           optional, see the layout `folder`

A photo with several labels needs a file of labels: the layout `folder`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from wsseg_ray.datasets import Layout, Listing, root_of
from wsseg_ray.datasets.labelled import PHOTO_SUFFIXES, Row, listing_of, split_in
from wsseg_ray.datasets.place import Place
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection

MASKS = "masks"


def read(section: DatasetSection, seed: int = 0) -> Listing:
    """All photos in folders of classes. Raises DatasetError where there is no such folder."""
    root = root_of(section)
    rows = (row for split, folder in _folders(root) for row in _rows(root, split, folder))
    first = next(rows, None)
    if first is None:
        raise DatasetError(f"dataset.root: {root} has no folder with photos in it; each folder is a class")
    return listing_of(root, root, chain([first], rows), section)


def _folders(root: Place) -> Iterator[tuple[str, Place]]:
    """The folders of classes, each with its split or ""."""
    folders = [root / name for name, is_folder in sorted(root.entries().items()) if is_folder and _counts(name)]
    splits = [folder for folder in folders if split_in(folder.name)]
    if splits and len(splits) == len(folders):
        for folder in splits:
            yield from ((split_in(folder.name), path) for _, path in _folders(folder))
        return
    yield from (("", folder) for folder in folders)


def _counts(name: str) -> bool:
    return name != MASKS and not name.startswith(".")


def _rows(root: Place, split: str, folder: Place) -> Iterator[Row]:
    before = f"{folder.parent.name}/" if folder.parent != root else ""
    for path in folder.files():
        if path.lower().endswith(PHOTO_SUFFIXES) and not path.rpartition("/")[2].startswith("."):
            yield Row(f"{before}{folder.name}/{path}", [folder.name], split)


def _recognises(root: Place) -> bool:
    return any(row for split, folder in _folders(root) for row in _rows(root, split, folder))


LAYOUT = Layout(read, recognises=_recognises)
