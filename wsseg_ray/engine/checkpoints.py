"""Weights in and out of a run, without Ray."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch

from wsseg_ray.engine.stage import Finding
from wsseg_ray.errors import WeightsError
from wsseg_ray.storage import RunDirectory, read_bytes, shown


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


def weights_finding(name: str, weights: str | None, build: Callable[[], tuple[Any, list[str]]]) -> Finding:
    """Whether a network can begin with its weights.

    Arguments:
        build: makes the network, and returns the names of the parameters that start at random, too.
    """
    try:
        _, fresh = build()
    except (WeightsError, OSError) as error:
        return Finding("weights", False, f"{name}: {error}", error)
    layers = list(dict.fromkeys(key.rsplit(".", 1)[0].rpartition("head.")[2] for key in fresh))
    text = f"{name}: {shown(weights) if weights else 'none'}"
    if weights is None:
        return Finding("weights", True, f"{text}; all layers start at random")
    if not layers or weights == "hcp":
        return Finding("weights", True, text)
    random = f"{', '.join(layers)} start at random"
    note = f"{shown(weights)} holds the conv layers alone: of {name} {random}" if "fc6" in layers else ""
    return Finding("weights", True, f"{text}; {random}", note=note)
