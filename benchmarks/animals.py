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
from wsseg_ray.storage import RunDirectory

DATA = Path(__file__).resolve().parents[1] / "../shared/data/voc-animals/VOCdevkit/VOC2012"
ANIMALS = ["cat", "cow", "dog", "horse", "person", "sheep"]
FIGURES = {  # of the supervision, by what they are called in the table
    "maps, best threshold": "localization_best_miou",
    "maps, argmax": "localization_miou",
    "rough masks": "rough_mask_miou",
    "candidates": "candidate_miou",
}


def photos_of(voc: Path, count: int) -> list[str]:
    """Names of the training photos: those with masks, and others up to `count`, in the data set's order."""
    names = (voc / "ImageSets/Segmentation/train_aug.txt").read_text().split()
    masks = {file.stem for file in (voc / "SegmentationClassAug").glob("*.png")}
    others = [name for name in names if name not in masks]
    more = max(0, min(count, len(names)) - (len(names) - len(others)))
    wanted = {others[i * len(others) // more] for i in range(more)} | masks
    return [name for name in names if name in wanted]


def view(voc: Path, folder: Path, count: int) -> Path:
    """The data set with fewer training photos, as links."""
    (folder / "ImageSets").mkdir(parents=True, exist_ok=True)
    for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Main"):
        if not (folder / name).exists():
            (folder / name).symlink_to((voc / name).resolve())
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(exist_ok=True)
    (lists / "train_aug.txt").write_text("\n".join(photos_of(voc, count)) + "\n")
    (lists / "val.txt").write_text((voc / "ImageSets/Segmentation/val.txt").read_text())
    return folder


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """What a run is compared by."""
    found = {f"pseudo-labels: {name}": metrics["supervision"][key] for name, key in FIGURES.items()}
    for round_, labels in metrics.get("own_labels", {}).items():
        found |= {f"pseudo-labels: own, {round_}, {name}": value for name, value in labels.items()}
    for name, network in metrics["networks"].items():
        found[f"val: {name}"] = network["val"]["miou"]
        found[f"val: {name} + CRF"] = network["val"]["miou_crf"]
    seconds = {name: stage["seconds"] for name, stage in metrics["stages"].items()}
    return {**found, **{f"seconds: {name}": value for name, value in seconds.items()}, "seconds": sum(seconds.values())}


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
    root = view(args.voc, (args.runs / f"voc-{args.photos}").resolve(), args.photos)
    every = []
    for seed in args.seeds:
        settings = [f"dataset.root={root}", f"dataset.classes={ANIMALS}", f"segmentation.networks={args.networks}"]
        place = str((args.runs / f"{args.photos}-{seed}").resolve())
        pipeline.run(recipe.load("best", [*settings, f"seed={seed}", *args.settings]), place)
        every.append(figures(RunDirectory.at(place).read_json("metrics.json")))
    print(f"{args.photos} training photos, seeds {args.seeds}: mean, lowest to highest")
    for name in every[0]:
        values = np.array([own[name] for own in every])
        print(f"{name:<40} {values.mean():8.1f} {values.min():8.1f} to {values.max():.1f}")


if __name__ == "__main__":
    main()
