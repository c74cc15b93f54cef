"""Weights in and out of a run, without Ray."""

from __future__ import annotations

import io
from typing import Any

import torch

from wsseg_ray.errors import WeightsError
from wsseg_ray.tables import RunDirectory, read_bytes


def restore(run: RunDirectory, *place: str) -> dict[str, Any] | None:
    """The tensors and plain data that `training.save` kept in a file of the run, or None where there is no file."""
    if not run.exists(*place):
        return None
    return torch.load(io.BytesIO(run.read_bytes(*place)), map_location="cpu", weights_only=True)


def weights_source(weights: str) -> str | bytes:
    """What `load_weights` reads: `imagenet` as it is, else the bytes of the file, local or on an object store.

    Raises WeightsError where the file cannot be read.
    """
    try:
        return weights if weights == "imagenet" else read_bytes(weights)
    except OSError as error:
        raise WeightsError(f"weights {weights} cannot be read ({error}); give a file, `imagenet` or null") from error
