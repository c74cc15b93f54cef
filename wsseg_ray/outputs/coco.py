"""One JSON file in COCO's form, which annotation tools read: each connected piece of a class is an object.

`coco` writes pieces as compressed run-length masks, made by pycocotools; they are exact. `coco_polygons` writes
outlines, for tools that edit polygons: they cut the corners of pixels, and holes are lost. A category's id is its
class's value in the PNGs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from pycocotools import mask as rle
from scipy import ndimage

from wsseg_ray.outputs import Labelled, Output

Shape = Callable[[np.ndarray], Any]  # a piece (H, W) uint8 as COCO's `segmentation`


def encode(shape: Shape, labelled: Labelled) -> bytes:
    """A photo's entry of `images`, and its objects without ids, as JSON."""
    height, width = labelled.labels.shape
    image = {"file_name": labelled.file, "height": height, "width": width}
    values = [int(value) for value in np.unique(labelled.labels) if value]
    objects = [piece for value in values for piece in _pieces(labelled.labels == value, value, shape)]
    return json.dumps({"image": image, "annotations": objects}).encode()


def join(parts: Sequence[bytes], classes: Sequence[str]) -> bytes:
    """The file, from what `encode` gave for each photo."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, part in enumerate(map(json.loads, parts), 1):
        images.append({"id": number, **part["image"]})
        for found in part["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **found})
    categories = [{"id": value, "name": name} for value, name in enumerate(classes, 1)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


def run_lengths(piece: np.ndarray) -> dict[str, Any]:
    """A piece as a compressed run-length mask."""
    encoded = rle.encode(np.asfortranarray(piece))  # pycocotools goes column by column
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def outline(piece: np.ndarray) -> list[list[float]]:
    """The outlines of a piece, each `[x1, y1, x2, y2, ...]` in pixels from the corner of the photo."""
    import contourpy

    # Pixels are points to contourpy, and the outline lies half way to the next one: zeros must lie around.
    points: Any = contourpy.contour_generator(z=np.pad(piece, 1).astype(float), fill_type="OuterOffset")
    polygons, offsets = points.filled(0.5, 2)
    # The first ring of a polygon is its outer one. In the padded array pixel i is centred on i + 1, in COCO on i + 1/2.
    return [(ring[: own[1] - 1] - 0.5).round(2).ravel().tolist() for ring, own in zip(polygons, offsets, strict=True)]


def _pieces(mask: np.ndarray, value: int, shape: Shape) -> list[dict[str, Any]]:
    """The connected pieces of a class (H, W) bool as objects."""
    numbered, _ = ndimage.label(mask, np.ones((3, 3)))
    found = []
    for number, place in enumerate(ndimage.find_objects(numbered), 1):
        piece = np.zeros(mask.shape, np.uint8)
        piece[place] = numbered[place] == number
        rows, columns = place
        found.append(
            {
                "category_id": value,
                "iscrowd": 0,
                "area": int(piece.sum()),
                "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
                "segmentation": shape(piece),
            }
        )
    return found


OUTPUT = Output(partial(encode, run_lengths), file="labels.json", join=join)
POLYGONS = Output(partial(encode, outline), file="labels.json", join=join)
