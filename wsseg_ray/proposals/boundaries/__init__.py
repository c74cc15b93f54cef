"""Backbones that find the boundaries which people draw in a photo, for the generator of proposals.

`BOUNDARIES` names them as `BACKBONES` does. A small perceptron reads the hypercolumn of each pixel: what all levels of
the backbone see there. It was trained on the human boundaries of BSDS500, similar to HED (Xie and Tu, ICCV 2015) and
PixelNet (Bansal et al., 2017); `benchmarks/train_proposals.py` trains it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import torch

    from wsseg_ray.backbones.base import BaseBackbone


class Boundary(NamedTuple):
    """What a backbone finds in a photo."""

    strength: np.ndarray  # (h, w) float32 in 0..1: the probability that a person draws a boundary through a pixel
    learned: str  # the file of perceptrons that go with it, see `learned`


@dataclass(frozen=True)
class BoundaryFinder:
    """A backbone with a perceptron that finds boundaries.

    Arguments:
        backbone: its name in `BACKBONES`.
        outputs: the maps that make the hypercolumn, (1, C, h, w) each, from the backbone's layers and a normalised
            photo (1, 3, H, W).
        centred: True: the corner cells of a map are centred on the photo's corner pixels. False: its cells lie side by
            side and cover the photo.
        learned: `perceptrons/<learned>.npz` holds the perceptrons that were trained with it.
    """

    backbone: str
    outputs: Callable[[BaseBackbone, torch.Tensor], list[torch.Tensor]]
    centred: bool
    learned: str


BOUNDARIES: Registry[BoundaryFinder] = Registry(
    "backbone that finds boundaries",
    {
        "vgg16": "wsseg_ray.proposals.boundaries.vgg16:VGG16",
        "timm:tf_efficientnet_lite2": "wsseg_ray.proposals.boundaries.lite2:LITE2",
    },
    contract=BoundaryFinder,
)
