"""The stages of a run, one file each: what it reads, computes and writes.

A stage imports no other stage. What several stages need lies in the modules here that hold no `STAGE`.
"""

from __future__ import annotations

from wsseg_ray.engine.stage import Stage
from wsseg_ray.registry import Registry

# In the order in which they run. `relabel` and `train_segmenter` are repeated once per round.
STAGES: Registry[Stage] = Registry(
    "stage",
    {
        "images": "wsseg_ray.stages.images:STAGE",
        "features": "wsseg_ray.stages.features:STAGE",
        "proposals": "wsseg_ray.stages.proposals:STAGE",
        "train_hcp": "wsseg_ray.stages.train_hcp:STAGE",
        "score": "wsseg_ray.stages.score:STAGE",
        "refine": "wsseg_ray.stages.refine:STAGE",
        "supervise": "wsseg_ray.stages.supervise:STAGE",
        "features_segmenter": "wsseg_ray.stages.features:SEGMENTER",
        "relabel": "wsseg_ray.stages.relabel:STAGE",
        "train_segmenter": "wsseg_ray.stages.train_segmenter:STAGE",
        "predict": "wsseg_ray.stages.predict:STAGE",
    },
    contract=Stage,
)
