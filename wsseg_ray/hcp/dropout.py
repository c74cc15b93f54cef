"""Dropout whose masks belong to photos, so that it does not matter which worker has a photo, or in which order."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import nn


class PhotoDropout(nn.Dropout):
    """Dropout (Srivastava et al., 2014) that draws the mask of a photo from a number of the photo.

    Each worker then drops from its part of a batch what one worker drops from the whole batch. `number_photos` gives
    the numbers before each training pass; the pass uses them up, so that no batch is dropped with the numbers of the
    batch before.
    """

    numbers: Sequence[int] | None = None
    rows: Sequence[int] | None = None

    @torch.compiler.disable  # the masks of a step are drawn anew, not compiled in
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop from x (n, ...), whose rows belong to the numbered photos, in their order.

        Raises ValueError in training where the photos have no numbers, or numbers for another count of rows.
        """
        if not self.training or self.p == 0:
            return x
        numbers, self.numbers = self.numbers, None
        if numbers is None:
            raise ValueError("in training each photo needs a number: call `number_photos` before each pass")
        rows = self.rows or [1] * len(numbers)
        if sum(rows) != len(x):
            raise ValueError(f"{len(numbers)} photos are numbered for {sum(rows)} rows, the batch has {len(x)}")
        kept = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for mask, number in zip(kept.split(list(rows)), numbers, strict=True):
            mask.bernoulli_(1 - self.p, generator=torch.Generator(x.device).manual_seed(number))
        return x * kept / (1 - self.p)


def number_photos(network: nn.Module, numbers: Sequence[int], rows: Sequence[int] | None = None) -> None:
    """Tell every dropout of a network which photos come next.

    Arguments:
        numbers: one for each photo of the next batch, from `mixed`. Each layer makes its own number of it.
        rows: how many rows of the batch each photo has, one after the other; None: one row each.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, PhotoDropout)]
    for place, layer in enumerate(layers):
        layer.numbers, layer.rows = [mixed(number, place) for number in numbers], rows


def mixed(*numbers: int) -> int:
    """One number, 0..2^62 - 1, for several: unlike for unlike numbers, but for a chance of 2^-62 per pair."""
    digest = blake2b(b"".join(number.to_bytes(8, "big") for number in numbers), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def dropouts_by_photo(network: nn.Module) -> None:
    """Put `PhotoDropout` where a network has `nn.Dropout`."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, PhotoDropout(child.p))
