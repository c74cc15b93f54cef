"""Region proposals: computations on them (`regions`), and their sources: `generate`, `mcg`, `masks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    import numpy as np

    from wsseg_ray.proposals.regions import RegionProposals

MAX_PIXELS = 100_000_000  # of a photo in a proposal file; a file with more is broken or hostile


class ProposalFileError(ValueError):
    """A proposal file that cannot be used. The message says what is wrong and, where known, what to do."""


@dataclass(frozen=True)
class Source:
    """A way to get proposals: from the photo, or from one file per photo. Exactly one of the two functions is given.

    Both return at most `count` proposals and their objectness in 0..1, (N,) float32 descending. Both may raise
    ValueError; then only this photo fails.

    Arguments:
        from_photo: `(photo (H, W, 3) uint8, count) -> regions, objectness`. With `takes_boundary`, its third argument
            is the `Boundary` that a backbone found, or None.
        from_file: `(data, count) -> regions, objectness`; `data` are the bytes of a file.
        suffix: end of the file names `<proposals.root>/<image_id><suffix>`.
        takes_boundary: whether it uses `proposals.backbone`, which finds boundaries.
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
