"""A linear classifier of each cell: what a backbone's features give by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsseg_ray.backbones import Backbone
from wsseg_ray.segmentation.heads import Head

if TYPE_CHECKING:
    from wsseg_ray.segmentation.heads.layers import Cells


def _build(backbone: Backbone, channels: Mapping[str, int], classes_with_background: int) -> Cells:
    from wsseg_ray.segmentation.heads.layers import Cells  # imports torch

    return Cells(channels["out"], (), backbone.dropout, classes_with_background)


LINEAR = Head("linear", _build)
