"""Cross-image refinement (Sec. 3.2): distances between candidates of one class, and which candidates are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsseg_ray.registry import Registry

if TYPE_CHECKING:
    from wsseg_ray.refinement.distance import Metric
    from wsseg_ray.refinement.selection import Keep

METRICS: Registry[Metric] = Registry(
    "distance metric",
    {
        "squared_l2": "wsseg_ray.refinement.distance:SQUARED_L2",
        "l2": "wsseg_ray.refinement.distance:L2",
        "cosine": "wsseg_ray.refinement.distance:COSINE",
        "nearest": "wsseg_ray.refinement.distance:NEAREST",
    },
)
KEEPS: Registry[Keep] = Registry(
    "way to choose candidates",
    {
        "nearest": "wsseg_ray.refinement.selection:nearest",
        "farthest": "wsseg_ray.refinement.selection:farthest",
        "norm": "wsseg_ray.refinement.selection:norm",
        "score": "wsseg_ray.refinement.selection:score",
        "area": "wsseg_ray.refinement.selection:area",
        "random": "wsseg_ray.refinement.selection:random",
    },
)
