"""A strip of pictures of one photo: the photo, the map of a class, the rough mask, and what a network says.

    python benchmarks/picture.py RUN PHOTO cat --network AN_B --out docs/cat.jpg

RUN is a finished run of the recipe `best`, whose networks learned from names alone. The map and the rough mask are made
as in its stages; the photo itself was never trained on. README's photo is Chelsea, by Stefan van der Walt (CC0):
`skimage.data.chelsea`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import wsseg_ray
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.datasets.pixels import read_photo, voc_palette
from wsseg_ray.engine.stage import Job, open_run
from wsseg_ray.hcp.scoring import choose_candidates, score_proposals
from wsseg_ray.proposals import generate
from wsseg_ray.report.pictures import heat_ramp
from wsseg_ray.stages.hcp import colours_of, loss_of, trained
from wsseg_ray.supervision import MASKS, READINGS, Evidence
from wsseg_ray.supervision.maps import normalize_max

HEIGHT, GAP = 240, 6  # pixels


def supervision(job: Job, photo: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
    """The map (H, W) in 0..1 and the rough mask (H, W) of a photo with one class."""
    settings, hcp = job.recipe.supervision, job.recipe.hcp
    regions, objectness = generate.SOURCE.from_photo(photo, job.recipe.proposals.count, None)
    network, colours = trained(job), colours_of(hcp.backbone)
    every, _ = score_proposals(network, normalise(photo, *colours)[0], regions, loss_of(job.recipe))
    scores = every.T[[label]].astype(np.float64)
    kept, _ = choose_candidates(scores, hcp.threshold, hcp.min_candidates)
    empty, none = np.zeros((1, len(regions.areas))), [np.array([], int)]
    known = Evidence(
        regions, [label], scores, objectness, np.zeros(len(regions)), kept, none, empty, read_photo=lambda: photo
    )
    known = replace(known, maps=normalize_max(READINGS.get(settings.reading)(known)))
    return known.maps[0][regions.superpixels], MASKS.get(settings.mask)(known, settings)[regions.superpixels]


def painted(photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The photo with a mask's colours on it; background darker, 255 (unknown) grey."""
    colours = voc_palette()[mask].astype(np.float64)
    colours[mask == 255] = 128
    share = np.where(mask == 0, 0.55, 0.6)[..., None]
    return ((1 - share) * photo + share * colours).astype(np.uint8)


def heated(photo: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The photo with a map's colours on it."""
    ramp = heat_ramp()
    colours = ramp[np.rint(heat * (len(ramp) - 1)).astype(int)]
    return (0.4 * photo + 0.6 * colours).astype(np.uint8)


def strip(pictures: list[np.ndarray]) -> Image.Image:
    """Pictures of one size side by side."""
    width = round(pictures[0].shape[1] * HEIGHT / pictures[0].shape[0])
    sheet = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, HEIGHT), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(
            Image.fromarray(picture).resize((width, HEIGHT), Image.Resampling.LANCZOS), (place * (width + GAP), 0)
        )
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("photo", type=Path)
    parser.add_argument("label", help="the class that is in the photo")
    parser.add_argument("--network", default="AN_B")
    parser.add_argument("--out", type=Path, default=Path("picture.jpg"))
    args = parser.parse_args()
    job = open_run(args.run)
    photo = read_photo(args.photo.read_bytes(), job.recipe.dataset.max_side)
    heat, rough = supervision(job, photo, job.classes.index(args.label))
    labels = wsseg_ray.load(args.run, args.network).predict(photo)
    strip([photo, heated(photo, heat), painted(photo, rough), painted(photo, labels)]).save(args.out, quality=90)
    print(f"{args.out}: photo, map, rough mask, labels by {args.network}")


if __name__ == "__main__":
    main()
