"""Region pooling: from a region of a photo to the input of HCP's head.

`POOLINGS` lists the variants. Most are computed from the photo's feature map; `sums.SumPooling` makes those that need
only sums over regions. For your own, write a function from the feature map and the regions to the pooled features, and
wrap it in `MapPooling`. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy import sparse

from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    import torch

    from wsseg_ray.hcp.network import HypothesisNetwork

MAX_NUMBERS = 2**24  # pooled features per pass of fc6 and fc7: 64 MB, 668 of VGG-16's pooled boxes


class RegionPooling(Protocol):
    """A variant.

    Attributes: `needs_photo`: whether its source is the photo, on which it runs the backbone itself; otherwise the
    source is the photo's feature map.
    """

    needs_photo: bool

    def inputs(self, channels: int, grid: int) -> int:
        """Pooled features per region.

        Arguments:
            channels: C, of the feature map.
            grid: cells per side of a pooled box, set by the backbone.
        """

    def whole(self, network: HypothesisNetwork, source: torch.Tensor) -> torch.Tensor:
        """Pooled features (1, ...) of the whole photo as the only region, as in image-fine-tuning.

        Arguments:
            source: (1, C, h, w) the feature map, or (1, 3, H, W) the normalised photo.
        """

    def chunks(
        self, network: HypothesisNetwork, source: torch.Tensor, regions: RegionProposals
    ) -> Iterator[torch.Tensor]:
        """Pooled features of all regions in order, in chunks (n, ...) to limit memory.

        Yields at least one chunk, which may be empty. Gradients flow to the source or to the backbone.

        Arguments:
            source: (C, h, w) the feature map, or (3, H, W) the normalised photo.
        """

    def convert_fc6(self, weight: torch.Tensor) -> torch.Tensor | None:
        """Weights (n, inputs) from VGG-16's fc6 (n, 512 x 7 x 7); None: fc6 and fc7 start at random."""


@dataclass(frozen=True)
class MapPooling:
    """A pooling from the photo's feature map, by a function.

    Arguments:
        pool: the feature map (C, h, w) of the whole photo, and N regions, to (N, C x cells).
        cells: pooled features per channel and region.

    Of the whole photo it gives the features of one region that covers the feature map. fc6 and fc7 start at random.
    """

    pool: Callable[[torch.Tensor, RegionProposals], torch.Tensor]
    cells: int = 1

    needs_photo = False

    def inputs(self, channels: int, grid: int) -> int:
        return channels * self.cells

    def whole(self, network: HypothesisNetwork, source: torch.Tensor) -> torch.Tensor:
        one = RegionProposals(np.zeros(source.shape[2:], np.uint16), sparse.csr_array(np.ones((1, 1), np.float32)))
        return self.pool(source[0], one)

    def chunks(
        self, network: HypothesisNetwork, source: torch.Tensor, regions: RegionProposals
    ) -> Iterator[torch.Tensor]:
        yield from parts(self.pool(source, regions))

    def convert_fc6(self, weight: torch.Tensor) -> torch.Tensor | None:
        return None


def parts(pooled: torch.Tensor) -> Sequence[torch.Tensor]:
    """Pooled features (N, n) in parts of at most MAX_NUMBERS, at least one part."""
    return pooled.split(max(1, MAX_NUMBERS // pooled.shape[1]))


POOLINGS: Registry[RegionPooling] = Registry(
    "region pooling",
    {
        "warp": "wsseg_ray.hcp.pooling.warp:WARP",
        "roi": "wsseg_ray.hcp.pooling.roi:ROI",
        "segment": "wsseg_ray.hcp.pooling.segment:SEGMENT",
        "context": "wsseg_ray.hcp.pooling.context:CONTEXT",
    },
)
