"""What does it bring to read predictions off between the cells, and to shrink the CRF's widths with the photo?

    python benchmarks/prediction.py RUN NETWORK... [--shares 1 0.5 0.4]

RUN has trained networks and val photos with masks; it is not changed. Prints the val mIoU of each network, in percent,
compared at full size:

    stretched           what the cells say, stretched over the photo, as if the last cell lay on the last pixel
    between cells       as `segmentation.inference` reads it off, also with the mirrored photo ("mirrored")
    CRF, share 1, ...   after the CRF, whose widths in pixels are multiplied by this share ("between cells" before it)
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import torch
from tqdm import tqdm

from wsseg_ray.backbones.photos import normalise
from wsseg_ray.datasets.pixels import photo_size, read_mask, read_photo
from wsseg_ray.engine.stage import Job, open_run
from wsseg_ray.evaluation.iou import confusion, miou
from wsseg_ray.segmentation.crf import dense_crf
from wsseg_ray.segmentation.inference import at_pixels, photo_views, upsample
from wsseg_ray.stages.labels import enlarge
from wsseg_ray.stages.segmenters import network_named, trained
from wsseg_ray.storage import read_bytes
from wsseg_ray.tables import IMAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run directory")
    parser.add_argument("networks", nargs="+", help="names of its networks")
    parser.add_argument("--shares", type=float, nargs="+", default=[1, 0.5, 0.4], help="of the CRF's widths")
    arguments = parser.parse_args()
    job = open_run(arguments.run)
    networks = [trained(job, network_named(job.recipe, name)) for name in arguments.networks]
    rows = [row for shard in job.run.shards("images", "val") for row in job.run.read_good(IMAGES, shard).values()]
    totals: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(2 * (len(job.classes) + 1,), np.int64))
    for row in tqdm([row for row in rows if row.mask_uri], unit="photo"):
        data = read_bytes(row.uri)
        full = photo_size(data)
        truth = read_mask(read_bytes(row.mask_uri), *full, job.listing.mask_values)
        photo = read_photo(data, job.recipe.dataset.max_side)
        for variant, labels in variants(job, networks, photo, arguments.shares).items():
            for name, own in zip(arguments.networks, labels, strict=True):
                totals[name, variant] += confusion(enlarge(own, full), truth, len(job.classes) + 1)
    for (name, variant), total in totals.items():
        print(f"{name:<10} {variant:<30} {miou(total):5.1f}")


@torch.no_grad()
def variants(
    job: Job, networks: list[torch.nn.Module], photo: np.ndarray, shares: list[float]
) -> dict[str, list[np.ndarray]]:
    """Labels (H, W) of each network, by the name of the variant."""
    height, width = photo.shape[:2]
    tensor = normalise(photo)
    views = photo_views(networks, tensor, mirror=True)
    plain = [at_pixels(own[:1], height, width) for own in views]
    mean = [at_pixels(own, height, width) for own in views]
    old = [upsample(network(tensor), height, width)[0] for network in networks]
    flipped = [upsample(network(tensor.flip(3)).flip(3), height, width)[0] for network in networks]
    found = {
        "stretched": _best(old),
        "between cells": _best(plain),
        "stretched, mirrored": _best([(a + b) / 2 for a, b in zip(old, flipped, strict=True)]),
        "between cells, mirrored": _best(mean),
    }
    settings = job.recipe.crf.model_dump(exclude={"enabled"})
    probabilities = torch.stack(plain).softmax(dim=1)
    for share in shares:
        widths = {key: share * settings[key] for key in ("bilateral_xy", "spatial_xy")}
        found[f"CRF, share {share:g}"] = list(dense_crf(photo, probabilities, **settings | widths))
    return found


def _best(logits: list[torch.Tensor]) -> list[np.ndarray]:
    return [own.argmax(dim=0).to(torch.uint8).numpy() for own in logits]


if __name__ == "__main__":
    main()
