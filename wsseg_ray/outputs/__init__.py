"""What labels of new photos are written as: palette PNGs, pictures, COCO's JSON, probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Labelled:
    """A photo with its labels.

    Arguments:
        file: the name of the photo's file.
        data: the photo's file.
        labels: (H, W) uint8 at the photo's size: 0 background, i + 1 the i-th class.
        classes: names.
        probabilities: (C + 1, h, w) float32 before the CRF, at the size at which the network saw the photo; channel 0
            is the background. Computed when it is called.
    """

    file: str
    data: bytes
    labels: np.ndarray
    classes: Sequence[str]
    probabilities: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Output:
    """A form to write labels in: a file per photo, or one file for all photos.

    Arguments:
        encode: `Labelled -> bytes`: the photo's file, or its part of the one file.
        suffix: end of the name of a photo's file.
        file: name of the one file; "": a file per photo.
        join: `(parts, classes) -> bytes`: the one file, from the parts of all photos.
    """

    encode: Callable[[Labelled], bytes]
    suffix: str = ""
    file: str = ""
    join: Callable[[Sequence[bytes], Sequence[str]], bytes] | None = None


OUTPUTS: Registry[Output] = Registry(
    "form of labels",
    {
        "png": "wsseg_ray.outputs.png:OUTPUT",
        "overlay": "wsseg_ray.outputs.overlay:OUTPUT",
        "coco": "wsseg_ray.outputs.coco:OUTPUT",
        "coco_polygons": "wsseg_ray.outputs.coco:POLYGONS",
        "npz": "wsseg_ray.outputs.npz:OUTPUT",
    },
    contract=Output,
)
