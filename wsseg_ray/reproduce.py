"""The published numbers, run again: `claims.yaml` says for each what to run and what it gave.

A claim is a recipe with settings, a data set, seeds, and the figures that came out. A figure agrees with the published
one if it is no further from the mean of the seeds than the furthest seed, or than the claim's tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from wsseg_ray import pipeline, recipe
from wsseg_ray.errors import DatasetError, RecipeError
from wsseg_ray.storage import RunDirectory

SPLITS = ("train_aug", "val")
CRF = " + CRF"  # behind a network's name: its figure after the CRF


@dataclass(frozen=True)
class Published:
    """A figure as it was published.

    Arguments:
        value: the mean over the seeds.
        low, high: over the seeds.
        tolerance: how far from `value` a mean still agrees.
    """

    value: float
    low: float
    high: float
    tolerance: float


@dataclass(frozen=True)
class Claim:
    """A row of the headline table.

    Arguments:
        name: by which `wsseg reproduce` runs it.
        about: what it is, in a few words.
        recipe: a shipped recipe.
        settings: changes of it.
        data: a name in `claims.yaml`; "": the recipe's own.
        photos: how many training photos are taken of the data; None: all.
        masks: how many of them have true masks, where a network learns from these; None: all.
        backbone: for readers.
        minutes: that the first seed took on `machine`.
        tolerance: percent points by which a figure may differ and still agree.
        figures: by name: see `figures`.
    """

    name: str
    about: str
    recipe: str
    settings: list[str]
    data: str
    photos: int | None
    backbone: str
    seeds: list[int]
    minutes: float
    machine: str
    date: str
    commit: str
    tolerance: float
    figures: dict[str, Published]
    masks: int | None = None


@dataclass(frozen=True)
class Found:
    """A figure that was measured again, beside the published one."""

    name: str
    published: Published
    values: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def agrees(self) -> bool:
        return abs(self.mean - self.published.value) <= self.published.tolerance


def claims() -> dict[str, Claim]:
    """All claims, by name, the newest first."""
    rows = _file()["claims"]
    return {
        name: Claim(**{**row, "name": name, "figures": _figures(row["figures"], row["tolerance"])})
        for name, row in rows.items()
    }


def reproduce(
    name: str, root: str | None, folder: str, seeds: Sequence[int] | None, tell: Callable[[str], None]
) -> list[Found]:
    """Run a claim again.

    Arguments:
        name: of the claim.
        root: the folder of its data; None where it needs none.
        folder: where the runs go, one run directory for all seeds; what is there already is used.
        seeds: None: those of the claim. The mean of fewer seeds is less sure.
    Raises RecipeError where there is no such claim, DatasetError where the data is not the claim's.
    """
    known = claims()
    if name not in known:
        raise RecipeError(f"{name}: no such claim; there are {', '.join(known)}")
    claim, every = known[name], []
    settings = [*claim.settings, *_data_settings(claim, root, Path(folder))]
    for seed in seeds or claim.seeds:
        tell(f"{name}, seed {seed}; a seed took {claim.minutes:g} minutes on {claim.machine}")
        pipeline.run(recipe.load(claim.recipe, [*settings, f"seed={seed}"]), folder)
        every.append(figures(RunDirectory.at(folder).read_json("metrics.json")))
    return [Found(one, published, [own[one] for own in every]) for one, published in claim.figures.items()]


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """The accuracies of a run, in percent: of its maps, rough masks and own labels on the training photos that have
    masks, and of its networks on val."""
    names = {"maps, best threshold": "localization_best_miou", "maps, argmax": "localization_miou"}
    names |= {"rough masks": "rough_mask_miou", "candidates": "candidate_miou"}
    found = {name: metrics["supervision"][key] for name, key in names.items()}
    for round_, labels in metrics.get("own_labels", {}).items():
        found |= {f"own labels, {round_}, {name}": value for name, value in labels.items()}
    for name, network in metrics["networks"].items():
        found[name] = network["val"]["miou"]
        found[name + CRF] = network["val"]["miou_crf"]
    return found


def subset(voc: Path, folder: Path, count: int) -> Path:
    """A data set of VOC's layout with fewer training photos: its folders as links, and shorter lists.

    Photos with masks come first, since they measure the pseudo-labels: `count` of them, evenly spread, or all of them
    and others up to `count`.
    """
    (folder / "ImageSets").mkdir(parents=True, exist_ok=True)
    for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Main"):
        if not (folder / name).exists():
            (folder / name).symlink_to((voc / name).resolve())
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(exist_ok=True)
    (lists / "train_aug.txt").write_text("\n".join(chosen(voc, count)) + "\n")
    (lists / "val.txt").write_text((voc / "ImageSets/Segmentation/val.txt").read_text())
    return folder


def chosen(voc: Path, count: int) -> list[str]:
    """The names of `count` training photos, see `subset`, in the data set's order."""
    names = _names(voc, "train_aug")
    masks = {file.stem for file in (voc / "SegmentationClassAug").glob("*.png")}
    masked, others = [name for name in names if name in masks], [name for name in names if name not in masks]
    first = _spread(masked, min(count, len(masked)))
    wanted = {*first, *_spread(others, min(count - len(first), len(others)))}
    return [name for name in names if name in wanted]


def table() -> list[str]:
    """The claims as the rows of a Markdown table, with a row per network."""
    heads = ["photos", "network", "val mIoU %", "with CRF", "seeds", "minutes", "`wsseg reproduce`", "backbone", "date"]
    heads.append("commit")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for claim in claims().values():
        seeds = ", ".join(map(str, claim.seeds))
        for name in dict.fromkeys(figure.removesuffix(CRF) for figure in claim.figures):
            cells = [claim.about, name, _shown(claim.figures[name], claim.seeds)]
            cells += [_shown(claim.figures[name + CRF], claim.seeds, "**"), seeds, f"{claim.minutes:g}"]
            cells += [f"`{claim.name}`", claim.backbone, claim.date, claim.commit]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _shown(figure: Published, seeds: list[int], mark: str = "") -> str:
    """A figure's mean, and the lowest and highest of its seeds.

    Arguments:
        mark: Markdown around the mean.
    """
    spread = f" ({figure.low:.1f}\u2013{figure.high:.1f})" if len(seeds) > 1 else ""
    return f"{mark}{figure.value:.1f}{mark}{spread}"


def _file() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((resources.files("wsseg_ray") / "claims.yaml").read_text())
    return found


def _figures(rows: dict[str, list[float]], tolerance: float) -> dict[str, Published]:
    """Figures from the value of each seed."""
    found = {}
    for name, values in rows.items():
        mean = float(np.mean(values))
        furthest = max(abs(value - mean) for value in values)
        found[name] = Published(mean, min(values), max(values), max(tolerance, furthest))
    return found


def _data_settings(claim: Claim, root: str | None, folder: Path) -> list[str]:
    if not claim.data:
        return []
    about = _file()["data"][claim.data]
    if root is None:
        raise DatasetError(f"{claim.name} needs --root, the folder of {claim.data}: {about['about']}")
    voc = Path(root).expanduser().resolve()
    names = [name for split in SPLITS for name in _names(voc, split)]
    if digest(names) != about["digest"]:
        raise DatasetError(f"{root} is not {claim.data}: {about['about']}; its lists name {len(names)} photos")
    if claim.photos is not None:
        voc = subset(voc, folder.resolve() / f"voc-{claim.photos}", claim.photos)
    return [f"dataset.root={voc}", f"dataset.classes={about['classes']}"]


def digest(names: Sequence[str]) -> str:
    """What tells a data set's lists from others."""
    return blake2b("\n".join(names).encode(), digest_size=8).hexdigest()


def _names(voc: Path, split: str) -> list[str]:
    file = voc / "ImageSets/Segmentation" / f"{split}.txt"
    if not file.is_file():
        raise DatasetError(f"{voc} has no ImageSets/Segmentation/{split}.txt")
    return file.read_text().split()


def _spread(names: list[str], count: int) -> list[str]:
    return [names[i * len(names) // count] for i in range(count)]
