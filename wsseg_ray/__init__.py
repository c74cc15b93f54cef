"""Learn to segment from image-level labels, as a distributed job on Ray.

The method is "Learning to Segment with Image-level Annotations" (Wei et al., Pattern Recognition 2016).

The Python interface; each name is imported when it is first used:

    run(recipe, run_dir)        run a recipe, a YAML file, or the photos of a folder, as `wsseg run` does
    load(place, network)        a trained network of a run or a file; its `predict(photo)` labels every pixel
    generate_proposals          candidate regions of a photo
    RegionProposals             regions as superpixels and a sparse matrix: areas, boxes, IoUs without dense masks
    refine_distances            Eq. (1): how far candidates are from those of other photos
    localization_maps           Sec. 3.3.1: where the kept regions of a class are
    rough_mask                  Eq. (5): one class per superpixel

The array functions need neither Ray nor files. `run` needs no Ray with the setting `runtime.engine=local`.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Before torch is imported, here and in every process of a run: threads that wait for each other must not spin. Where
# other processes want the same cores, spinning made training and prediction ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Tensors of 2 MB and more in large pages of memory: with small pages, stage `proposals` took a quarter longer on a CPU
# (docs/results/speed.md).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from wsseg_ray.api import TrainedNetwork, load, run
    from wsseg_ray.proposals.generate import generate as generate_proposals
    from wsseg_ray.proposals.regions import RegionProposals
    from wsseg_ray.refinement.distance import refine_distances
    from wsseg_ray.supervision.maps import localization_maps
    from wsseg_ray.supervision.masks import rough_mask

__version__ = "0.1.0"
__all__ = [
    "RegionProposals",
    "TrainedNetwork",
    "generate_proposals",
    "load",
    "localization_maps",
    "refine_distances",
    "rough_mask",
    "run",
]
_PLACES = {
    "RegionProposals": "wsseg_ray.proposals.regions",
    "TrainedNetwork": "wsseg_ray.api",
    "generate_proposals": "wsseg_ray.proposals.generate",
    "load": "wsseg_ray.api",
    "localization_maps": "wsseg_ray.supervision.maps",
    "refine_distances": "wsseg_ray.refinement.distance",
    "rough_mask": "wsseg_ray.supervision.masks",
    "run": "wsseg_ray.api",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'wsseg_ray' has no attribute {name!r}")
    module = importlib.import_module(_PLACES[name])
    return getattr(module, "generate" if name == "generate_proposals" else name)
