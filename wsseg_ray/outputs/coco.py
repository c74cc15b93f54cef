"""One JSON file in COCO's form, which annotation tools read: each connected piece of a class is an object.

Pieces are compressed run-length masks, made by pycocotools. A category's id is its class's value in the PNGs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle
from scipy import ndimage

from wsseg_ray.outputs import Labelled, Output


def encode(labelled: Labelled) -> bytes:
    """A photo's entry of `images`, and its objects without ids, as JSON."""
    height, width = labelled.labels.shape
    image = {"file_name": labelled.file, "height": height, "width": width}
    values = [int(value) for value in np.unique(labelled.labels) if value]
    objects = [piece for value in values for piece in _pieces(labelled.labels == value, value)]
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


def _pieces(mask: np.ndarray, value: int) -> list[dict[str, Any]]:
    """The connected pieces of a class (H, W) bool as objects."""
    numbered, _ = ndimage.label(mask, np.ones((3, 3)))
    found = []
    for number, place in enumerate(ndimage.find_objects(numbered), 1):
        piece = np.zeros(mask.shape, np.uint8, order="F")  # pycocotools goes column by column
        piece[place] = numbered[place] == number
        encoded = rle.encode(piece)
        rows, columns = place
        found.append(
            {
                "category_id": value,
                "iscrowd": 0,
                "area": int(piece.sum()),
                "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
            }
        )
    return found


OUTPUT = Output(encode, file="labels.json", join=join)
