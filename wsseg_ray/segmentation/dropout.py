"""Dropout whose masks belong to photos, so that it does not matter which worker has a photo, or in which order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class PhotoDropout(nn.Dropout):
    """Dropout (Srivastava et al., 2014) that draws a photo's mask from a number of the photo.

    A batch dealt out over several workers then drops what the whole batch would on one.
    """

    numbers: Sequence[int] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop from (B, ...), whose B photos have the `numbers`; from any B photos, as `nn.Dropout`, before there are.

        Raises ValueError where there is not one number a photo.
        """
        if not self.training or self.p == 0 or self.numbers is None:
            return super().forward(x)
        if len(self.numbers) != len(x):
            raise ValueError(f"{len(x)} photos need as many numbers, got {len(self.numbers)}: call `number_photos`")
        kept = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for mask, number in zip(kept, self.numbers, strict=True):
            mask.bernoulli_(1 - self.p, generator=torch.Generator(x.device).manual_seed(number))
        return x * kept / (1 - self.p)


def number_photos(network: nn.Module, numbers: Sequence[int]) -> None:
    """Tell every dropout of a network which photos come next.

    Arguments:
        numbers: one a photo of the next batch, 0..2^62. Each layer makes its own number of it.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, PhotoDropout)]
    for place, layer in enumerate(layers):
        layer.numbers = [number + place for number in numbers]


def dropouts_by_photo(network: nn.Module) -> None:
    """Put `PhotoDropout` where a network has `nn.Dropout`."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, PhotoDropout(child.p))
