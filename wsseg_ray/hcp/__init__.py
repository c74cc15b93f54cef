"""Hypothesis-CNN-Pooling (Sec. 3.1): a classifier of regions, trained from image-level labels alone.

`network` (a backbone and a head), `pooling` (the head's input for a region), `hypotheses` (the proposals that train
it), `loss`, `scoring`, and `reduction` (PCA of its features, Sec. 3.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    from wsseg_ray.hcp.loss import Loss

LOSSES: Registry[Loss] = Registry(
    "HCP loss",
    {
        "squared": "wsseg_ray.hcp.loss:SQUARED",
        "cross_entropy": "wsseg_ray.hcp.loss:CROSS_ENTROPY",
        "binary_cross_entropy": "wsseg_ray.hcp.loss:BINARY_CROSS_ENTROPY",
    },
)
