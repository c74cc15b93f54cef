"""Photos of unlike sizes through a network together, each as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn import functional

FILLING = 2  # times the photos' own pixels, at most: what a canvas should have
LAYERS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)  # layers that may look at more than one cell
SIZES = ((65, 97), (97, 65), (97, 129))  # pixels of the photos on which `may_share_a_canvas` tries a network


def neighbours(network: nn.Module) -> list[nn.Module]:
    """The layers that look at more than one cell."""
    return [layer for layer in network.modules() if isinstance(layer, LAYERS) and layer.kernel_size not in (1, (1, 1))]


@contextmanager
def each_alone(layers: Sequence[nn.Module], sizes: Sequence[tuple[int, int]], canvas: torch.Size) -> Iterator[None]:
    """Inside the block, what lies beyond a photo is zero before each of these layers.

    So a convolution finds at the border of each photo the zeros that its own padding would put there. Cell (i, j) of a
    map of stride s must be centred on pixel (s i, s j), as it is in photos of s k + 1 pixels.

    Arguments:
        layers: a network's `neighbours`. They get a hook for the time of the block.
        sizes: (H, W) of each photo, pixels; each lies at the top left of its canvas.
        canvas: (B, C, H, W) of the batch that goes through the network.
    Costs one multiplication per number that these layers read.
    """
    masks: dict[tuple[int, int], torch.Tensor] = {}

    def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (maps,) = inputs
        height, width = maps.shape[2:]
        if (height, width) not in masks:
            masks[height, width] = _mask(np.array(sizes), canvas, maps)
        return (maps * masks[height, width],)

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mask(sizes: np.ndarray, canvas: torch.Size, maps: torch.Tensor) -> torch.Tensor:
    """(B, 1, h, w) bool on the device, whether the centre of a cell lies in the photo; `sizes` is (B, 2)."""
    inside = []
    for axis in (0, 1):
        stride = (canvas[2 + axis] - 1) / max(1, maps.shape[2 + axis] - 1)
        centres = np.arange(maps.shape[2 + axis]) * stride
        inside.append(torch.from_numpy(centres < sizes[:, axis, None] - 0.5).to(maps.device))
    rows, columns = inside
    return rows[:, None, :, None] & columns[:, None, None, :]


def canvas_pixels(sizes: Mapping[tuple[int, int], int]) -> int | None:
    """Pixels of the canvas for photos of unlike sizes; None where most of it would be filling: see FILLING.

    Arguments:
        sizes: how many photos there are of each (H, W).
    """
    pixels = max(h for h, _ in sizes) * max(w for _, w in sizes) * sum(sizes.values())
    return pixels if pixels <= FILLING * sum(h * w * count for (h, w), count in sizes.items()) else None


def on_canvas(batches: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Batches (B_i, C, H_i, W_i) as one (sum of B_i, C, H, W), filled up with zeros; and each photo's (H_i, W_i)."""
    height, width = (max(batch.shape[axis] for batch in batches) for axis in (2, 3))
    sizes = [(int(batch.shape[2]), int(batch.shape[3])) for batch in batches for _ in range(len(batch))]
    filled = [functional.pad(batch, (0, width - batch.shape[3], 0, height - batch.shape[2])) for batch in batches]
    return torch.cat(filled).contiguous(memory_format=torch.channels_last), sizes


@torch.no_grad()
def may_share_a_canvas(network: nn.Module, look: Callable[[torch.Tensor], Sequence[torch.Tensor]]) -> bool:
    """Whether a network gives photos `each_alone` on one canvas the maps that it gives them apart. Tries it on noise.

    It does not where a layer looks at the whole map, such as squeeze-and-excitation or attention.

    Arguments:
        look: the network's maps (B, C, h, w) of photos (B, 3, H, W).
    """
    generator, own = torch.Generator().manual_seed(0), next(network.parameters())
    photos = [torch.randn(1, 3, *size, generator=generator).to(own.device, own.dtype) for size in SIZES]
    canvas, sizes = on_canvas(photos)
    with each_alone(neighbours(network), sizes, canvas.shape):
        together = look(canvas)
    for place, photo in enumerate(photos):
        for alone, maps in zip(look(photo), together, strict=True):
            inside = maps[place : place + 1, :, : alone.shape[2], : alone.shape[3]]
            if (inside - alone).abs().max() > 0.01 * alone.square().mean().sqrt():
                return False
    return True
