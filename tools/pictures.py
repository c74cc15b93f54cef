"""Pictures of each step of the method, for the page "How it works": `python tools/pictures.py runs/demo`.

They show one training photo and one val photo of a finished run of the demo (`make demo`), as the run's tables have
them: nothing is drawn by hand or computed in another way.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsseg_ray.datasets.pixels import voc_palette
from wsseg_ray.engine.stage import Job, open_run
from wsseg_ray.proposal_page import mean_colours
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.report.pictures import heat_ramp
from wsseg_ray.stages.rows import photo_of, regions_of, truth_of
from wsseg_ray.supervision.maps import background
from wsseg_ray.tables import (
    IMAGES,
    PREDICTIONS,
    PROPOSALS,
    REFINED,
    SCORES,
    SUPERVISION,
    ImageRow,
    PredictionRow,
    R,
    RefinedRow,
    ScoreRow,
    SupervisionRow,
    Table,
)

ZOOM, GAP, CAPTION = 2, 10, 22  # times a drawn photo's pixels; pixels between tiles; height of a caption
UNKNOWN = 255
Tile = tuple[str, np.ndarray]  # a caption and a picture (H, W, 3) uint8


@dataclass
class Shown:
    """A photo of a run, with what each stage wrote about it."""

    job: Job
    image_id: str

    def row(self, table: Table[R]) -> R:
        """The photo's row of a table. Raises KeyError where it has none."""
        return next(row for row in self.job.run.rows(table) if row.image_id == self.image_id)

    @cached_property
    def image(self) -> ImageRow:
        return self.row(IMAGES)

    @cached_property
    def photo(self) -> np.ndarray:
        return photo_of(self.job, self.image)

    @cached_property
    def truth(self) -> np.ndarray:
        return truth_of(self.job, self.image)

    @cached_property
    def regions(self) -> RegionProposals:
        return regions_of(self.row(PROPOSALS))

    @cached_property
    def scores(self) -> ScoreRow:
        return self.row(SCORES)

    @cached_property
    def refined(self) -> RefinedRow:
        return self.row(REFINED)

    @cached_property
    def supervision(self) -> SupervisionRow:
        return self.row(SUPERVISION)

    @cached_property
    def predictions(self) -> PredictionRow:
        return self.row(PREDICTIONS)

    @property
    def names(self) -> list[str]:
        """The photo's labels."""
        return [self.job.classes[label] for label in self.image.labels]

    def region(self, index: int) -> np.ndarray:
        """The photo, dark outside a region."""
        inside = self.regions.mask(index)[..., None]
        return np.where(inside, self.photo, self.photo // 4)

    def map(self, values: np.ndarray) -> np.ndarray:
        """A map (S,) in 0..1 as colours: black is 0, pale yellow is 1."""
        ramp = heat_ramp()
        return ramp[np.rint(values * (len(ramp) - 1)).astype(int)][self.regions.superpixels]

    def labels(self, mask: np.ndarray) -> np.ndarray:
        """The photo with the colours of a mask (H, W) on it: background is dark, unknown is grey."""
        colours = voc_palette()[mask].astype(float)
        colours[mask == UNKNOWN] = 128
        share = np.where(mask == 0, 0.7, 0.65)[..., None]
        return ((1 - share) * self.photo + share * colours).astype(np.uint8)


def photos(shown: Iterable[Shown]) -> list[Tile]:
    """What a person gives: photos and their labels."""
    return [(", ".join(one.names), one.photo) for one in shown]


def proposals(shown: Shown) -> list[Tile]:
    """The photo, its superpixels, and some of its regions."""
    superpixels = shown.regions.superpixels
    cut = mean_colours(shown.photo, superpixels)
    some = [(f"region {n}", shown.region(n - 1)) for n in (1, 2, 10, 40)]
    return [("photo", shown.photo), (f"{superpixels.max() + 1} superpixels", cut), *some]


def scores(shown: Shown) -> list[Tile]:
    """Regions with high and low scores for the first label."""
    name, own = shown.names[0], shown.scores.scores[0].astype(float)
    order = np.argsort(-own, kind="stable")
    chosen = order[[0, 5, len(order) // 6, len(order) // 3, len(order) // 2, -1]]
    return [(f"{name} {own[n]:.2f}", shown.region(n)) for n in chosen]


def refinement(shown: Shown) -> list[Tile]:
    """Candidates for the first label with the smallest and the largest distance by Eq. (1)."""
    own = np.flatnonzero(shown.scores.candidate_label == shown.image.labels[0])
    order = own[np.argsort(shown.refined.distance[own], kind="stable")]
    chosen = [*order[[0, 1, 2]], *order[[-3, -2, -1]]]
    return [
        (
            f"{'kept' if shown.refined.kept[n] else 'dropped'}, {shown.refined.distance[n]:.3g}",
            shown.region(shown.scores.candidate[n]),
        )
        for n in chosen
    ]


def maps(shown: Shown) -> list[Tile]:
    """The localization map of each label, and that of the background (Eq. 2)."""
    found = shown.supervision.maps.astype(float)
    own = [(name, shown.map(values)) for name, values in zip(shown.names, found, strict=True)]
    return [("photo", shown.photo), *own, ("background", shown.map(background(found)))]


def masks(shown: Shown) -> list[Tile]:
    """The rough mask beside the true mask."""
    rough = shown.supervision.mask[shown.regions.superpixels]
    return [
        ("photo", shown.photo),
        ("rough mask", shown.labels(rough)),
        ("true mask (not used)", shown.labels(shown.truth)),
    ]


def labels(shown: Shown, network: str) -> list[Tile]:
    """What a network says of a val photo, without and with the CRF."""
    found = shown.predictions
    place = found.networks.index(network)
    plain, crf = (np.asarray(Image.open(io.BytesIO(png[place]))) for png in (found.png, found.png_crf))
    return [
        ("new photo", shown.photo),
        (f"network {network}", shown.labels(plain)),
        ("after the CRF", shown.labels(crf)),
        ("true mask (not used)", shown.labels(shown.truth)),
    ]


def sheet(tiles: Sequence[Tile]) -> Image.Image:
    """Pictures in rows of three, or four where there are four, each with its caption below."""
    across = 4 if len(tiles) == 4 else 3
    wide, tall = (ZOOM * max(picture.shape[side] for _, picture in tiles) for side in (1, 0))
    step = (wide + GAP, tall + CAPTION)
    paper = Image.new("RGB", (across * step[0] - GAP, -(-len(tiles) // across) * step[1]), "white")
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(size=15)
    for number, (caption, picture) in enumerate(tiles):
        left, top = number % across * step[0], number // across * step[1]
        enlarged = Image.fromarray(picture).resize(
            (ZOOM * picture.shape[1], ZOOM * picture.shape[0]), Image.Resampling.NEAREST
        )
        paper.paste(enlarged, (left + (wide - enlarged.width) // 2, top + tall - enlarged.height))
        draw.text((left + wide / 2, top + tall + 3), caption, fill="black", font=font, anchor="ma")
    return paper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the directory of a finished run of the demo")
    parser.add_argument("--train", default="demo_train_00000", help="the training photo")
    parser.add_argument("--val", default="demo_val_00003", help="the val photo")
    parser.add_argument("--network", default="AN_B", help="the network that labels the val photo")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args()
    job = open_run(args.run)
    train, val = Shown(job, args.train), Shown(job, args.val)
    others = [Shown(job, f"demo_train_{number:05}") for number in range(1, 6)]
    sheets = {
        "photos": photos([train, *others]),
        "proposals": proposals(train),
        "scores": scores(train),
        "refinement": refinement(train),
        "maps": maps(train),
        "mask": masks(train),
        "labels": labels(val, args.network),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for name, tiles in sheets.items():
        sheet(tiles).save(args.out / f"{name}.jpg", quality=82, optimize=True)


if __name__ == "__main__":
    main()
