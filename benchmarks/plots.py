"""The plots of docs/results, drawn from the claims and from the tables of the pages: no number is typed here twice.

python benchmarks/plots.py          # writes docs/plots/*.svg

photos.svg      val mIoU against the number of training photos
compute.svg     val mIoU against minutes, with published methods of today
proposals.svg   recall of objects against the number of regions, beside MCG
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import drawing
from wsseg_ray.reproduce import Claim, claims

ROOT = Path(__file__).parents[1]
PLOTS = ROOT / "docs/plots"
# What the authors state for VOC 2012 val, 20 classes: hours of one RTX 3090, mIoU
PUBLISHED = {"ExCEL (CLIP ViT-B)": (2, 78.4), "MoRe (ViT-B)": (6, 76.4)}
COUNTS = (100, 500, 1000, 2000)  # of regions


def size(claim: Claim) -> int:
    """Training photos of a claim, which `about` begins with."""
    return int(claim.about.split()[0].replace(",", ""))


def photos() -> str:
    """Our networks, by the number of training photos."""
    found: dict[str, list[tuple[float, float]]] = {}
    for claim in sorted((claim for claim in claims().values() if claim.data), key=size):
        for name, figure in claim.figures.items():
            learned_from = claim.masks or size(claim) if name.startswith("FULL") else size(claim)
            found.setdefault(name, []).append((learned_from, figure.value))
    title = "Six animals of VOC, two cores"
    return drawing.plot(found, "photos learned from; FULL: true masks", "val mIoU %", title, log_x=True, joined=True)


def compute() -> str:
    """Our recipes on two cores and published methods on a GPU, by minutes."""
    ours = [
        (claim.minutes, figure.value, claim)
        for claim in claims().values()
        for name, figure in claim.figures.items()
        if claim.data and name == "AN_B + CRF"
    ]
    theirs = {(hours * 60.0, miou): name for name, (hours, miou) in PUBLISHED.items()}
    names = {(minutes, miou): f"{size(claim):,} photos" for minutes, miou, claim in ours} | theirs
    series = {
        "ours, 6 animals, two cores": [(minutes, miou) for minutes, miou, _ in ours],
        "theirs, VOC's 20 classes, one RTX 3090": list(theirs),
    }
    return drawing.plot(series, "minutes", "val mIoU %", "Accuracy and time", log_x=True, names=names)


def proposals() -> str:
    """Objects that a region fits with IoU 0.7: the third number of each cell under "Beside Selective Search"."""
    rows = rows_under("docs/results/proposals.md", "## Beside Selective Search and MCG", part=2)
    wanted = {
        "ours, boundaries by VGG-16": "ours, VGG-16",
        "ours, colour and texture": "ours, no backbone",
        "MCG": "MCG, all of VOC val",
    }
    series = {short: list(zip(COUNTS, rows[name], strict=False)) for name, short in wanted.items()}
    title = "Objects with a region of IoU 0.7 or more"
    return drawing.plot(series, "regions per photo", "recall %", title, log_x=True, joined=True)


def stages() -> str:
    """Seconds of the stages with 600 photos: the first two columns of the table."""
    rows = rows_under("docs/results/speed.md", "## Seconds per stage, 600 photos")
    found = {
        name: {"boundaries by the backbone": values[0], "colour and texture": values[1]}
        for name, values in rows.items()
        if len(values) > 1 and not name.startswith("*")
    }
    return drawing.bars(found, "Seconds per stage, 600 photos, two cores")


def rows_under(page: str, heading: str, part: int = 0) -> dict[str, list[float]]:
    """The rows of the first table under a heading: by the first cell, a number of each cell.

    Arguments:
        part: which one, from 0, in a cell such as `65.9 / 76 / 49`; a cell that has fewer is left out.
    """
    text = (ROOT / page).read_text().partition(f"{heading}\n")[2].partition("\n## ")[0]
    found: dict[str, list[float]] = {}
    for line in re.findall(r"^\|(.*)\|$", text, re.MULTILINE):
        name, *cells = (cell.strip() for cell in line.split("|"))
        parts = [own[part] for cell in cells if len(own := cell.split("/")) > part]
        numbers = [float(number[1]) for own in parts if (number := re.match(r"\s*\**([\d.]+)", own))]
        found.setdefault(name, numbers)
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PLOTS.mkdir(exist_ok=True)
    for draw in (photos, compute, proposals, stages):
        (PLOTS / f"{draw.__name__}.svg").write_text(draw())


if __name__ == "__main__":
    main()
