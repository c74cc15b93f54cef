"""Backbones of torchvision, as its segmentation networks use them: `torchvision:resnet50` and others.

Their last layers are dilated, so that cells lie close. They serve segmentation alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from wsseg_ray.backbones import Backbone
from wsseg_ray.backbones.named import torchvision_weights

if TYPE_CHECKING:
    from wsseg_ray.backbones.torchvision_layers import TorchvisionBackbone


class Level(NamedTuple):
    """Where a level's maps come from."""

    layer: str  # torchvision's name
    stride: int  # photo pixels from cell to cell
    channels: int


RESNET = {"out": Level("layer4", 8, 2048)}
LEVELS = {
    "resnet50": RESNET,
    "resnet101": RESNET,
    "mobilenet_v3_large": {"low": Level("4", 8, 40), "out": Level("16", 16, 960)},
}
DILATED: dict[str, dict[str, Any]] = {  # what makes torchvision dilate the last layers
    "resnet50": {"replace_stride_with_dilation": [False, True, True]},
    "resnet101": {"replace_stride_with_dilation": [False, True, True]},
    "mobilenet_v3_large": {"dilated": True},
}


def backbone(name: str) -> Backbone:
    """The variant by torchvision's name of the classifier.

    Raises ValueError for a name that is not in `LEVELS`.
    """
    if name not in LEVELS:
        there = ", ".join(f"torchvision:{known}" for known in LEVELS)
        raise ValueError(f"no backbone 'torchvision:{name}'; of torchvision there are {there}")
    return Backbone(
        name=f"torchvision:{name}",
        build=partial(_build, name),
        stride=None,
        dense_strides={level: of.stride for level, of in LEVELS[name].items()},
        weights={"imagenet": torchvision_weights(name)},
        dense_dilation=96 // LEVELS[name]["out"].stride,  # as far in photo pixels as on VGG-16
    )


def _build(name: str, dense: bool) -> TorchvisionBackbone:
    from torchvision.models import get_model  # with all its models, a second and a half: here alone

    from wsseg_ray.backbones.torchvision_layers import TorchvisionBackbone

    if not dense:
        raise ValueError(
            f"the backbone 'torchvision:{name}' serves segmentation alone: its cells are centred on pixels, while "
            "regions are pooled from cells that lie side by side"
        )
    classifier = get_model(name, weights=None, **DILATED[name])
    return TorchvisionBackbone(getattr(classifier, "features", classifier), LEVELS[name])
