"""A NumPy file per photo with the probability of each class in each pixel."""

from __future__ import annotations

import io

import numpy as np

from wsseg_ray.outputs import Labelled, Output


def encode(labelled: Labelled) -> bytes:
    """`probabilities` (C + 1, h, w) float16, as large as the network saw the photo, and `classes`, their names."""
    file = io.BytesIO()
    names = np.array(["background", *labelled.classes])
    np.savez_compressed(file, probabilities=labelled.probabilities().astype(np.float16), classes=names)
    return file.getvalue()


OUTPUT = Output(encode, suffix=".npz")
