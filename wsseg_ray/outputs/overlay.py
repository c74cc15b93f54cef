"""A JPEG per photo to look at: the photo with the labels' colours on it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from wsseg_ray.datasets.pixels import read_photo, voc_palette
from wsseg_ray.outputs import Labelled, Output

COLOUR = 0.55  # share of a class's colour
DIMMED = 0.45  # share of black over the background


def encode(labelled: Labelled) -> bytes:
    """The photo at full size, its background darker, each class in its colour of VOC's palette, as a JPEG."""
    photo, labels = read_photo(labelled.data).astype(np.float32), labelled.labels
    share = np.where(labels == 0, DIMMED, COLOUR)[..., None].astype(np.float32)
    picture = (1 - share) * photo + share * voc_palette()[labels]
    file = io.BytesIO()
    Image.fromarray(np.rint(picture).astype(np.uint8)).save(file, "jpeg", quality=90)
    return file.getvalue()


OUTPUT = Output(encode, suffix=".jpg")
