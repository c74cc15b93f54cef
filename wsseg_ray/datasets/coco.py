"""The layout of COCO: photos, and JSON files that list objects. A photo's labels are the categories of its objects.

    annotations/instances_train2017.json, train2017/a.jpg   as COCO has it; photos may also lie in `images`
    train/_annotations.coco.json, train/a.jpg               as Roboflow writes it; also `valid`
    classes.txt, masks/train2017/a.png                      optional, see the layout `folder`

The split is in the name of the file or of its folder; without one, a fifth of the photos is kept for val. Outlines and
boxes are not read: this method learns from names alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

from wsseg_ray.datasets import Layout, Listing, names_in, root_of
from wsseg_ray.datasets.labelled import Row, listing_of, split_in
from wsseg_ray.datasets.place import Place
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection

ROBOFLOW = "_annotations.coco.json"


def read(section: DatasetSection, seed: int = 0) -> Listing:
    """All photos that the JSON files list. Raises DatasetError where one of them is not COCO's."""
    root = root_of(section)
    files = list(_files(root))
    if not files:
        raise DatasetError(f"dataset.root: {root} has no annotations/instances_*.json and no {ROBOFLOW}")
    return listing_of(root, files[0], (row for file in files for row in _rows(root, file)), section)


def _files(root: Place) -> Iterator[Place]:
    annotations = root / "annotations"
    yield from (annotations / name for name in sorted(names_in(annotations)) if fnmatch(name, "instances_*.json"))
    folders = [root, *(root / name for name, is_folder in sorted(root.entries().items()) if is_folder)]
    yield from (folder / ROBOFLOW for folder in folders if (folder / ROBOFLOW).is_file())


def _rows(root: Place, file: Place) -> Iterator[Row]:
    try:
        data = json.loads(file.read_text())
        names = {one["id"]: str(one["name"]) for one in data["categories"]}
        labels: dict[Any, dict[str, None]] = {one["id"]: {} for one in data["images"]}
        for one in data["annotations"]:
            labels[one["image_id"]][names[one["category_id"]]] = None
        photos = [(str(one["file_name"]), list(labels[one["id"]])) for one in data["images"]]
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file} is not JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{file} is not COCO's: no {error}; it needs images, annotations and categories") from error
    split = split_in(file.parent.name if file.name == ROBOFLOW else file.stem)
    folder = _folder(root, file, [name for name, _ in photos])
    yield from (Row((folder / name).as_posix(), own, split) for name, own in photos)


def _folder(root: Place, file: Place, names: list[str]) -> PurePosixPath:
    """The folder of a file's photos, inside the data set's."""
    split = file.stem.partition("instances_")[2]
    tried = [file.parent.name] if file.name == ROBOFLOW and file.parent != root else []
    folders = [PurePosixPath(folder) for folder in (*tried, split, f"images/{split}", "images", ".")]
    first = PurePosixPath(names[0] if names else "a.jpg")
    here = (folder for folder in folders if first.name in names_in(root / str(folder / first.parent)))
    return next(here, folders[0])


LAYOUT = Layout(read, recognises=lambda root: any(_files(root)))
