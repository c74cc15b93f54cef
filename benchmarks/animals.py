"""The recipe `best` on six animals of VOC: pseudo-labels, networks and seconds, over several seeds.

    python benchmarks/animals.py --photos 600 --seeds 0 1 2 --runs runs/animals

Training photos are the 437 of VOC's own `train`, whose masks measure the pseudo-labels, and others, evenly spread, up
to `--photos`. True masks train the ceiling FULL alone. A run that is there already is gone on with. `--set` changes
the recipe, as in `wsseg run`. Needs `../shared/data/voc-animals`, or `--voc`, the folder with JPEGImages.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from wsseg_ray import pipeline, recipe
from wsseg_ray.reproduce import figures, subset
from wsseg_ray.storage import RunDirectory

DATA = Path(__file__).resolve().parents[1] / "../shared/data/voc-animals/VOCdevkit/VOC2012"
ANIMALS = ["cat", "cow", "dog", "horse", "person", "sheep"]


def measured(metrics: dict[str, Any]) -> dict[str, float]:
    """What a run is compared by: its accuracies and seconds."""
    seconds = {name: stage["seconds"] for name, stage in metrics["stages"].items()}
    own = {f"seconds: {name}": value for name, value in seconds.items()}
    return {**figures(metrics), **own, "seconds": sum(seconds.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/animals"))
    parser.add_argument("--voc", type=Path, default=DATA)
    parser.add_argument("--networks", default="[AN_B, FULL]")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    args = parser.parse_args()
    if not (args.voc / "JPEGImages").is_dir():
        sys.exit(f"skipped: {args.voc} has no JPEGImages; give --voc")
    root = subset(args.voc, (args.runs / f"voc-{args.photos}").resolve(), args.photos)
    every = []
    for seed in args.seeds:
        settings = [f"dataset.root={root}", f"dataset.classes={ANIMALS}", f"segmentation.networks={args.networks}"]
        place = str((args.runs / f"{args.photos}-{seed}").resolve())
        pipeline.run(recipe.load("best", [*settings, f"seed={seed}", *args.settings]), place)
        every.append(measured(RunDirectory.at(place).read_json("metrics.json")))
    print(f"{args.photos} training photos, seeds {args.seeds}: mean, lowest to highest")
    for name in every[0]:
        values = np.array([own[name] for own in every])
        print(f"{name:<40} {values.mean():8.1f} {values.min():8.1f} to {values.max():.1f}")


if __name__ == "__main__":
    main()
