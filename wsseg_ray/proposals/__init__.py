"""Region proposals: their algebra (`regions`), and where they come from: the sources `generate`, `mcg`, `masks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    import numpy as np

    from wsseg_ray.proposals.regions import RegionProposals

MAX_PIXELS = 100_000_000  # of a photo in a proposal file; more is a broken or hostile file


class ProposalFileError(ValueError):
    """A proposal file that cannot be used. The message says what is wrong with it and, where known, the way out."""


@dataclass(frozen=True)
class Source:
    """Where regions come from: from the photo, or from a file for each photo. One of the two functions is given.

    Both return the regions and their objectness in 0..1, (N,) float32 descending, at most `count` of them, and may
    raise ValueError, which fails the photo alone.

    Arguments:
        from_photo: `(photo (H, W, 3) uint8, count) -> regions, objectness`. Where `takes_boundary`, it is given the
            boundary (h, w) that a backbone found, too, or None.
        from_file: `(data, count) -> regions, objectness`, of the bytes of a file.
        suffix: of the files `<proposals.root>/<image_id><suffix>`.
        takes_boundary: whether `proposals.weights`, a backbone that finds boundaries, serves it.
    """

    from_photo: Callable[..., tuple[RegionProposals, np.ndarray]] | None = None
    from_file: Callable[[bytes, int], tuple[RegionProposals, np.ndarray]] | None = None
    suffix: str = ""
    takes_boundary: bool = False


SOURCES: Registry[Source] = Registry(
    "source of proposals",
    {
        "generate": "wsseg_ray.proposals.generate:SOURCE",
        "mcg": "wsseg_ray.proposals.mcg:SOURCE",
        "masks": "wsseg_ray.proposals.masks:SOURCE",
    },
    contract=Source,
)
