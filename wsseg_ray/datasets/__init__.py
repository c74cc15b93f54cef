"""Data sets: the photos, their labels, and the paths of their masks.

`list_photos` reads a layout into one `Listing`. A photo that cannot be used stays in the listing, with a message.
A data set that cannot be used raises `DatasetError` before any work starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from wsseg_ray.datasets.place import Place
from wsseg_ray.datasets.spool import Photo, Photos
from wsseg_ray.errors import DatasetError
from wsseg_ray.recipe import DatasetSection
from wsseg_ray.registry import Registry

MAX_ID_BYTES = 240  # an image_id is a file name; file systems allow 255 bytes, suffix included


@dataclass(frozen=True)
class Listing:
    """The photos of a data set.

    Arguments:
        classes: names.
        mask_values: the pixel value of every class in the mask files; 0 is background, every other value is void.
        photos: usable photos and photos with an error, which may be gone through many times. Of a layout in any order;
            of `list_photos` by split and image_id.
    """

    classes: list[str]
    mask_values: list[int]
    photos: Iterable[Photo]


@dataclass(frozen=True)
class Layout:
    """How photos and labels are stored.

    Arguments:
        read: `(section, seed) -> Listing` of all photos of both splits, in any order. `section` is the recipe's
            `dataset`. Raises DatasetError if the whole data set cannot be read; a photo that cannot be used has an
            `error`.
        draws: whether it draws its photos, into the folder `section.root`, which the run sets.
        recognises: whether a folder is of this layout, seen from what lies in it.
    """

    read: Callable[[DatasetSection, int], Listing]
    draws: bool = False
    recognises: Callable[[Place], bool] = lambda root: False


LAYOUTS: Registry[Layout] = Registry(
    "data set layout",
    {
        "folder": "wsseg_ray.datasets.folder:LAYOUT",
        "voc": "wsseg_ray.datasets.voc:LAYOUT",
        "coco": "wsseg_ray.datasets.coco:LAYOUT",
        "classes": "wsseg_ray.datasets.classes:LAYOUT",
        "parquet": "wsseg_ray.datasets.parquet:LAYOUT",
        "webdataset": "wsseg_ray.datasets.webdataset:LAYOUT",
        "demo": "wsseg_ray.datasets.demo:LAYOUT",
    },
    contract=Layout,
)


def layout_of(folder: Place) -> str:
    """The layout of a folder of photos, seen from what lies in it: the first that recognises it.

    Raises DatasetError where none does.
    """
    for name in LAYOUTS.names:
        if LAYOUTS.get(name).recognises(folder):
            return name
    raise DatasetError(
        f"{folder}: holds neither a file of labels (labels.csv, labels.json, metadata.jsonl), nor VOC's JPEGImages, "
        "nor COCO's annotations, nor a folder with photos for each class, nor Parquet or tar files with photos"
    )


def list_photos(section: DatasetSection, own_folder: str | None = None, seed: int = 0) -> Listing:
    """The photos of a recipe.

    Photos without any of the wanted classes are left out. With `section.limit`, photos `floor(i n / limit)` of the n
    remaining photos of each split, sorted by image_id, are taken: always the same photos, evenly spread.

    Arguments:
        section: the recipe's `dataset`.
        own_folder: for a layout that draws its photos: the folder to draw into.
        seed: for a layout that draws its photos: the seed of the drawing.
    Costs one scan of every folder; no photo is opened. The photos lie in a temporary file.
    Raises DatasetError where the whole data set cannot be used.
    """
    layout = LAYOUTS.get(section.layout)
    if layout.draws:
        if own_folder is None:
            raise DatasetError(f"dataset.layout '{section.layout}' needs a folder to draw into")
        section = section.model_copy(update={"root": own_folder})
    elif section.root is None:
        raise DatasetError(f"dataset.root: layout '{section.layout}' needs the data set's folder")
    listing = layout.read(section, seed)
    photos = Photos(listing.photos, section.limit)
    refused = ""
    for photo in photos:
        if photo.split != "train":
            break
        if not photo.error:
            return replace(listing, photos=photos)
        refused = refused or photo.error
    reason = refused or f"none is labelled with any of {', '.join(listing.classes)}"
    raise DatasetError(f"{section.root}: no photo to train on: {reason}")


def names_in(folder: Place) -> set[str]:
    """Names in a folder, by one scan; none if the folder does not exist."""
    return set(folder.entries())


def root_of(section: DatasetSection) -> Place:
    """The data set's folder. Raises DatasetError where there is none."""
    assert section.root is not None  # `list_photos` has asked for it
    root = Place.at(section.root)
    if not root.is_dir():
        raise DatasetError(f"dataset.root: there is no folder {root}")
    return root


def read_classes(root: Place) -> list[str]:
    """The class names in `classes.txt`, one per line; line i is mask value i. Empty if there is no such file."""
    path = root / "classes.txt"
    if not path.is_file():
        return []
    names = [line.strip() for line in path.read_text().rstrip().split("\n")]
    if "" in names or len(set(names)) != len(names) or len(names) > 254:
        raise DatasetError(f"{path}: needs 1 to 254 different names, one per line, no line empty")
    return names


def choose_classes(known: list[str], wanted: list[str] | None) -> tuple[list[str], list[int]]:
    """The classes of a run and their mask values.

    Arguments:
        known: all classes of the data set; class i has mask value i + 1.
        wanted: `dataset.classes`; None: all.
    Raises DatasetError, which lists the wanted classes that are not known.
    """
    classes = list(wanted or known)
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise DatasetError(f"dataset.classes: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return classes, [known.index(name) + 1 for name in classes]


def id_problem(image_id: str) -> str:
    """Why an image_id cannot be a file name, or ""."""
    if image_id in ("", ".", "..") or any(one in "/\\\x7f" or one < " " for one in image_id):
        return f"{image_id!r} cannot be an image id: it must be a plain file name, without /, \\ or control characters"
    if len(image_id.encode()) > MAX_ID_BYTES:
        return f"the image id {image_id[:40]!r}... has more than {MAX_ID_BYTES} bytes; shorten the file's name"
    return ""
