"""A palette PNG per photo, as VOC has them: 0 background, i + 1 the i-th class."""

from __future__ import annotations

from wsseg_ray.datasets.pixels import encode_mask
from wsseg_ray.outputs import Labelled, Output


def encode(labelled: Labelled) -> bytes:
    """The labels as a palette PNG in VOC's colours."""
    return encode_mask(labelled.labels)


OUTPUT = Output(encode, suffix=".png")
