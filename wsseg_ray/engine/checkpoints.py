"""Weights in and out of a run, without Ray."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from wsseg_ray.backbones.named import WORDS, NamedWeights
from wsseg_ray.engine.stage import Finding
from wsseg_ray.errors import WeightsError
from wsseg_ray.storage import RunDirectory, read_bytes, shown

WEIGHTS = "network.pt"  # of a trained network, in its folder


def restore(run: RunDirectory, *place: str) -> dict[str, Any] | None:
    """The tensors and plain data that `training.save` kept in a file of the run, or None where there is no file."""
    if not run.exists(*place):
        return None
    return loaded(run.read_bytes(*place))


def loaded(data: bytes) -> dict[str, Any]:
    """The tensors and plain data of such a file."""
    found: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return found


def weights_source(weights: str) -> str | bytes:
    """What `load_weights` reads: a name as it is, else the bytes of the file, local or on an object store.

    Raises WeightsError where the file cannot be read.
    """
    try:
        return weights if weights in WORDS else read_bytes(weights)
    except OSError as error:
        raise WeightsError(
            f"weights {weights} cannot be read ({error}); give a file, one of {', '.join(WORDS)}, or null"
        ) from error


def weights_finding(
    name: str,
    weights: str | None,
    build: Callable[[], tuple[Any, list[str]]],
    named: Mapping[str, NamedWeights] | None = None,
    has_fc: bool = True,
) -> Finding:
    """Whether a network can begin with its weights, where they come from, and how large they are.

    Arguments:
        weights: a file, a name, None or `random`: at random, or `hcp`: those of this run's HCP.
        build: makes the network, and returns the names of the parameters that start at random, too.
        named: the weights of the backbone that have names.
        has_fc: whether a file could hold fc6 and fc7, so that it is worth a note if it does not.
    """
    try:
        _, fresh = build()
    except (WeightsError, OSError) as error:
        return Finding("weights", False, f"{name}: {error}", error)
    layers = list(dict.fromkeys(key.rsplit(".", 1)[0].rpartition("head.")[2] for key in fresh))
    if weights in (None, "random"):
        return Finding("weights", True, f"{name}: none; all layers start at random")
    if weights == "hcp":
        return Finding("weights", True, f"{name}: the backbone of this run's HCP")
    assert weights is not None
    text = f"{name}: {_origin(weights, named or {})}"
    if not layers:
        return Finding("weights", True, text)
    random = f"{', '.join(layers)} start at random"
    note = f"{shown(weights)} holds only the conv layers: in {name}, {random}" if "fc6" in layers and has_fc else ""
    return Finding("weights", True, f"{text}; {random}", note=note)


def _origin(weights: str, named: Mapping[str, NamedWeights]) -> str:
    """Where weights come from, and how large they are where that is known."""
    name = next(iter(named), "") if weights == "auto" else weights
    if name in named:
        return f"{name} ({named[name].about()})"
    if "://" in weights or not Path(weights).is_file():
        return shown(weights)
    return f"{shown(weights)} ({Path(weights).stat().st_size / 1e6:.0f} MB)"
