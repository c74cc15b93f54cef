"""Dropout with one mask per photo: the result does not depend on the worker or the order of photos."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import nn


class Numbered(NamedTuple):
    """The photos of a layer's next pass."""

    numbers: Sequence[int]
    rows: Sequence[int]


# Not in the layers: each thread has its own, so that a network can see several photos at once.
_next: ContextVar[dict[nn.Module, Numbered]] = ContextVar("photos of the next pass")


class PhotoDropout(nn.Dropout):
    """Dropout (Srivastava et al., 2014) whose mask for a photo is drawn from the photo's number.

    Several workers, each with a part of a batch, then drop the same values as one worker with the whole batch.
    `number_photos` sets the numbers before each training pass; the pass deletes them, so that no batch can use the
    numbers of the batch before.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop from x (n, ...), whose rows belong to the numbered photos, in their order.

        Raises ValueError in training where the photos have no numbers, or the count of rows is wrong.
        """
        if not self.training or self.p == 0:
            return x
        photos = _next.get({}).pop(self, None)
        if photos is None:
            raise ValueError("in training each photo needs a number: call `number_photos` before each pass")
        numbers, rows = photos
        if sum(rows) != len(x):
            raise ValueError(f"{len(numbers)} photos are numbered for {sum(rows)} rows, the batch has {len(x)}")
        kept = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for mask, number in zip(kept.split(list(rows)), numbers, strict=True):
            mask.bernoulli_(1 - self.p, generator=torch.Generator(x.device).manual_seed(number))
        return x * kept / (1 - self.p)


def number_photos(network: nn.Module, numbers: Sequence[int], rows: Sequence[int] | None = None) -> None:
    """Set the numbers of the next batch's photos in every dropout layer of a network, for a pass in this thread.

    Those of a pass that was not made are forgotten.

    Arguments:
        numbers: one per photo of the next batch, from `mixed`. Each layer computes its own number from it.
        rows: consecutive rows of the batch that belong to each photo; None: one row per photo.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, PhotoDropout)]
    rows = rows or [1] * len(numbers)
    _next.set({layer: Numbered([mixed(n, place) for n in numbers], rows) for place, layer in enumerate(layers)})


def leave_uncompiled(network: nn.Module) -> None:
    """Keep `torch.compile` out of every dropout layer of a network: each step must draw new masks."""
    for layer in network.modules():
        if isinstance(layer, PhotoDropout):
            # Not as a decorator: it imports torch's compiler, 4 s in each process.
            layer.forward = torch.compiler.disable(layer.forward)  # type: ignore[method-assign]


def mixed(*numbers: int) -> int:
    """One number, 0..2^62 - 1, from several. Different inputs give the same number with a chance of 2^-62 per pair."""
    digest = blake2b(b"".join(number.to_bytes(8, "big") for number in numbers), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def dropouts_by_photo(network: nn.Module) -> None:
    """Replace every `nn.Dropout` of a network by `PhotoDropout`."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, PhotoDropout(child.p))
