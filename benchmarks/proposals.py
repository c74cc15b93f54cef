"""How well do object proposals find the objects of VOC photos, and what do they cost? Ours beside the field's.

    pip install '.[bench]'
    python benchmarks/proposals.py --data VOC2012 [--photos N] [--methods ours,quadtree,...]
                                   [--backbone vgg16 --weights VGG16.pth]

`--data` is the folder that holds JPEGImages, ImageSets and SegmentationClassAug or SegmentationClass. The photos of
ImageSets/Segmentation/val.txt are taken at full size, in one process on one core, every method on a photo before the
next photo. An object is a connected component of cat, cow, dog, horse, person or sheep with 200 pixels or more;
pixels of VOC's other classes are left out like those of its void. Among the first n proposals of a method: J, the
mean over all objects of the best IoU (Pont-Tuset and Van Gool, ICCV 2015), and the share of objects found with IoU
0.5 and 0.7; once by regions and once by bounding boxes, where `all` is every proposal of the method.

    quadtree                   the floor: the photo halved both ways again and again, coarse to fine, 1,365 regions
    felzenszwalb               all segments of Felzenszwalb and Huttenlocher (IJCV 2004) at 6 scales and 3
                               smoothings, each region once, the largest first: it has no score to rank them by
    selective_search_fast      OpenCV's Selective Search (IJCV 2013), boxes alone, in its order, which is partly
    selective_search_quality   random by design
    ours                       what `generate(photo, 2000)` does, by colour and texture alone
    ours_nodes                 without pairs, triplets and 4-tuples
    ours_unranked              the largest first
    ours_backbone, ...         the same three with the boundaries that --backbone finds

Prints two tables of IoU and one of seconds, and a JSON line. With all methods a photo takes some 18 s.

    python benchmarks/proposals.py --sizes [--backbone ...]

measures instead what `generate` costs on the first photo enlarged to 0.5, 1, 2, 4 and 8 megapixels, decoded: seconds,
and the peak memory of a process that does nothing else.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch start their threads

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage, sparse
from torchvision.ops import box_iou
from tqdm import tqdm

from wsseg_ray.datasets import choose_classes, pixels, voc
from wsseg_ray.evaluation.objects import best_iou, objects, region_iou
from wsseg_ray.proposals import combinations, hierarchies, ranking
from wsseg_ray.proposals.boundaries import BOUNDARIES, Boundary
from wsseg_ray.proposals.boundaries.hypercolumn import find, load
from wsseg_ray.proposals.combinations import COARSE
from wsseg_ray.proposals.generate import cut, generate, shrink
from wsseg_ray.proposals.learned import PLAIN, layers
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.recipe import VOC_CLASSES

DATA = Path(__file__).resolve().parents[1] / "../shared/data/voc-animals/VOCdevkit/VOC2012"
ANIMALS = ["cat", "cow", "dog", "horse", "person", "sheep"]
COUNTS = [10, 100, 500, 1000, 2000]
FOUND = (0.5, 0.7)  # IoU
DEPTH = 5  # halvings: 1 + 4 + ... + 1,024 regions, the last whole level under 2,000
SCALES = (50, 100, 200, 400, 800, 1600)
MEGAPIXELS = (0.5, 1, 2, 4, 8)
REPEATS = 5
SMOOTHINGS = (0.5, 0.8, 1.0)  # sigma, pixels
STEPS = ("backbone", "contours, superpixels", "hierarchies", "combinations", "ranking")

Proposals = RegionProposals | np.ndarray  # regions, or boxes (N, 4): x0, y0, x1, y1, the end exclusive
Find = Callable[[np.ndarray], Boundary | None]  # photo -> its boundary
Method = Callable[[np.ndarray], tuple[Proposals, dict[str, float]]]  # photo -> proposals, seconds by step or {}


def from_partitions(maps: list[np.ndarray]) -> RegionProposals:
    """Every segment of several segmentations of a photo, in the order of the maps and of their labels.

    Two pixels share a superpixel when no map separates them.

    Arguments:
        maps: (H, W) integers each; every value of 0..K-1 occurs.
    Costs a sort of the pixels a map. Raises ValueError where the maps induce more than 65,536 superpixels.
    """
    cells = np.zeros(maps[0].size, np.int64)
    for labels in maps:
        _, pixel, cells = np.unique(
            cells * (int(labels.max()) + 1) + labels.ravel(), return_index=True, return_inverse=True
        )
    segments = [int(labels.max()) + 1 for labels in maps]
    starts = np.cumsum([0, *segments[:-1]])
    rows = np.concatenate([start + labels.ravel()[pixel] for start, labels in zip(starts, maps, strict=True)])
    columns = np.tile(np.arange(len(pixel)), len(maps))
    membership = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), (sum(segments), len(pixel)))
    return RegionProposals(cells.reshape(maps[0].shape), membership)


def quadtree(photo: np.ndarray) -> tuple[Proposals, dict[str, float]]:
    height, width = photo.shape[:2]
    depth = min(DEPTH, int(np.log2(min(height, width))))
    rows, columns = np.arange(height)[:, None], np.arange(width)
    return from_partitions([(rows * n // height) * n + columns * n // width for n in 2 ** np.arange(depth + 1)]), {}


def felzenszwalb(photo: np.ndarray) -> tuple[Proposals, dict[str, float]]:
    from skimage import segmentation

    start = time.perf_counter()
    maps = [segmentation.felzenszwalb(photo, scale, sigma, min_size=scale) for sigma in SMOOTHINGS for scale in SCALES]
    segmented = time.perf_counter()
    regions = from_partitions(maps)
    # Equal sums of random numbers mean equal rows.
    signatures = regions.membership @ np.random.default_rng(0).random(len(regions.areas))
    once = np.unique(signatures, return_index=True)[1]
    largest_first = once[np.lexsort((once, -regions.region_areas[once]))]
    regions = RegionProposals(regions.superpixels, regions.membership[largest_first])
    return regions, {"segment": segmented - start, "join": time.perf_counter() - segmented}


def selective_search(mode: str) -> Method:
    def search(photo: np.ndarray) -> tuple[Proposals, dict[str, float]]:
        import cv2

        cv2.setNumThreads(1)
        searcher = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        searcher.setBaseImage(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
        getattr(searcher, f"switchToSelectiveSearch{mode}")()
        x, y, width, height = searcher.process().astype(np.int64).reshape(-1, 4).T
        return np.stack([x, y, x + width, y + height], axis=1), {}

    return search


def finder(backbone: str | None, weights: str) -> Find:
    """What finds the boundary of a photo; without a backbone nothing does."""
    if backbone is None:
        return lambda photo: None
    found = BOUNDARIES.get(backbone)
    return partial(find, found, load(found, weights))


def ours(find: Find = lambda photo: None, coarse: tuple[int, ...] = COARSE, ranked: bool = True) -> Method:
    """What `generate` does, with a clock between its steps."""

    def propose(photo: np.ndarray) -> tuple[Proposals, dict[str, float]]:
        clock = [time.perf_counter()]
        boundary = find(photo)
        learned = boundary.learned if boundary else PLAIN
        clock.append(time.perf_counter())
        parts, seen = cut(photo, boundary)
        clock.append(time.perf_counter())
        strengths = hierarchies.arc_strengths(parts, seen, layers(learned, "arcs"))
        trees = hierarchies.trees(parts, seen, strengths)
        clock.append(time.perf_counter())
        regions = combinations.candidates(parts, trees, coarse)
        clock.append(time.perf_counter())
        if ranked:
            best, _ = ranking.rank(parts, seen, strengths, regions, layers(learned, "ranking"), COUNTS[-1])
        else:
            best = np.argsort(-(parts.areas @ regions), kind="stable")[: COUNTS[-1]]
        proposals = RegionProposals(parts.superpixels, sparse.csr_array(regions[:, best].T, dtype=np.float32))
        clock.append(time.perf_counter())
        return proposals, dict(zip(STEPS, np.diff(clock).tolist(), strict=True))

    return propose


def variants(name: str, find: Find = lambda photo: None) -> dict[str, Method]:
    return {name: ours(find), f"{name}_nodes": ours(find, ()), f"{name}_unranked": ours(find, ranked=False)}


METHODS: dict[str, Method] = {
    "quadtree": quadtree,
    "felzenszwalb": felzenszwalb,
    "selective_search_fast": selective_search("Fast"),
    "selective_search_quality": selective_search("Quality"),
    **variants("ours"),
}
NEEDS = {
    "felzenszwalb": "skimage.segmentation",
    "selective_search_fast": "cv2.ximgproc.segmentation",
    "selective_search_quality": "cv2.ximgproc.segmentation",
}


def installed(names: list[str]) -> list[str]:
    """The methods whose library is here; a line on stderr for each of the others."""
    found = []
    for name in names:
        try:
            importlib.import_module(NEEDS.get(name, "wsseg_ray"))
            found.append(name)
        except ImportError as error:
            print(f"{name} is left out ({error}): pip install '.[bench]'", file=sys.stderr)
    return found


def read(root: Path, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """A photo (H, W, 3) and its objects (H, W), as `evaluation.objects` labels them."""
    photo = pixels.read_photo((root / "JPEGImages" / f"{image_id}.jpg").read_bytes())
    places = [root / folder / f"{image_id}.png" for folder in voc.MASK_FOLDERS]
    mask = next((place for place in places if place.is_file()), places[-1])
    _, mask_values = choose_classes(VOC_CLASSES, ANIMALS)
    return photo, objects(pixels.read_mask(mask.read_bytes(), *photo.shape[:2], mask_values))


def found_by(proposals: Proposals, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Best IoU of every object among the first n proposals, n in COUNTS and all, (6, K), by regions and by boxes."""
    counts = [*COUNTS, max(len(proposals), 1)]
    extents = ndimage.find_objects(np.maximum(labels, 0))
    truth = np.array([[x.start, y.start, x.stop, y.stop] for y, x in extents], np.float64).reshape(-1, 4)
    by_regions = isinstance(proposals, RegionProposals)
    boxes = (proposals.boxes if by_regions else proposals).astype(np.float64)
    best = {"boxes": best_iou(box_iou(torch.from_numpy(boxes), torch.from_numpy(truth)).numpy(), counts)}
    return {"regions": best_iou(region_iou(proposals, labels), counts), **best} if by_regions else best


def measure(root: Path, image_ids: list[str], names: list[str]) -> tuple[dict[str, dict], int]:
    """What the JSON line says of each method, and the number of objects."""
    best = {name: {"regions": [], "boxes": []} for name in names}
    lengths, seconds, steps = ({name: [] for name in names} for _ in range(3))
    object_count = 0
    for image_id in tqdm(image_ids, unit="photo"):
        photo, labels = read(root, image_id)
        object_count += max(int(labels.max()), 0)
        for name in names:
            start = time.perf_counter()
            proposals, step_seconds = METHODS[name](photo)
            seconds[name].append(time.perf_counter() - start)
            steps[name].append(step_seconds)
            lengths[name].append(len(proposals))
            for kind, values in found_by(proposals, labels).items():
                best[name][kind].append(values)
    measured = {
        name: {
            "proposals": round(float(np.mean(lengths[name])), 1),
            **{kind: _summary(np.hstack(values)) for kind, values in best[name].items() if values},
            "seconds": {
                "median": round(float(np.median(seconds[name])), 3),
                "mean": round(float(np.mean(seconds[name])), 3),
                "steps": {step: round(float(np.mean([s[step] for s in steps[name]])), 3) for step in steps[name][0]},
            },
        }
        for name in names
    }
    return measured, object_count


def _summary(best: np.ndarray) -> dict[str, list[float]]:
    """J and recall in percent, a number a count, of the best IoU (counts, objects)."""
    recalls = {f"recall_{iou}": (best >= iou).mean(axis=1) for iou in FOUND}
    return {key: np.round(100 * row, 2).tolist() for key, row in {"J": best.mean(axis=1), **recalls}.items()}


def table(measured: dict[str, dict], kind: str) -> str:
    head = ["proposals", *(f"n = {count}" for count in COUNTS), "all"]
    lines = [f"By {kind}: J / recall at IoU 0.5 / at 0.7, percent", "", _row("method", head), _row("---", ["---:"] * 7)]
    for name, of in measured.items():
        if kind in of:
            cells = [f"{j:.1f} / {half:.0f} / {most:.0f}" for j, half, most in zip(*of[kind].values(), strict=True)]
            lines.append(_row(name, [f"{of['proposals']:.0f}", *cells]))
    return "\n".join([*lines, ""])


def seconds_table(measured: dict[str, dict]) -> str:
    lines = ["Seconds a photo, one core", "", _row("method", ["median", "mean", "steps (mean)"])]
    lines.append(_row("---", ["---:", "---:", "---"]))
    for name, of in measured.items():
        took = of["seconds"]
        steps = ", ".join(f"{step} {value:.2f}" for step, value in took["steps"].items())
        lines.append(_row(name, [f"{took['median']:.2f}", f"{took['mean']:.2f}", steps]))
    return "\n".join([*lines, ""])


def _row(first: str, cells: list[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


def scaling(photo: np.ndarray, backbone: str | None, weights: str) -> list[dict[str, float]]:
    """What `generate` costs by the size of the photo, each size in a process of its own."""
    measured = []
    for megapixels in MEGAPIXELS:
        scale = (megapixels * 1e6 / (photo.shape[0] * photo.shape[1])) ** 0.5
        size = round(photo.shape[1] * scale), round(photo.shape[0] * scale)
        enlarged = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            measured.append({"megapixels": megapixels, **process.submit(_cost, enlarged, backbone, weights).result()})
    return measured


def _cost(photo: np.ndarray, backbone: str | None, weights: str) -> dict[str, float]:
    torch.set_num_threads(1)
    find = finder(backbone, weights)
    before = _peak_mb()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        generate(photo, COUNTS[-1], find(shrink(photo)))
        seconds.append(time.perf_counter() - start)
    return {"seconds": round(float(np.median(seconds)), 3), "peak_mb": _peak_mb(), "before_mb": before}


def _peak_mb() -> int:
    # Not getrusage: its maximum is the parent's where that was larger.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder VOC2012")
    parser.add_argument("--photos", type=int, help="how many, evenly spread over the split; all without it")
    parser.add_argument("--methods", help="separated by commas; default: all")
    parser.add_argument("--backbone", choices=BOUNDARIES.names, help="finds boundaries; for ours_backbone and --sizes")
    parser.add_argument("--weights", default="auto", help="of the backbone: a file, or a name")
    parser.add_argument("--sizes", action="store_true", help="seconds and memory by the size of a photo instead")
    arguments = parser.parse_args()
    if arguments.backbone:
        METHODS.update(variants("ours_backbone", finder(arguments.backbone, arguments.weights)))
    if arguments.photos is not None and arguments.photos < 1:
        parser.error("--photos must be at least 1")
    names = arguments.methods.split(",") if arguments.methods else list(METHODS)
    if unknown := [name for name in names if name not in METHODS]:
        parser.error(f"--methods: there is no {', '.join(unknown)}; there are {', '.join(METHODS)}")
    split = arguments.data / "ImageSets" / "Segmentation" / "val.txt"
    if not split.is_file():
        print(f"skipped: there is no {split}; --data names the folder VOC2012", file=sys.stderr)
        return
    torch.set_num_threads(1)
    image_ids = voc.read_ids(split)
    if arguments.sizes:
        for row in scaling(read(arguments.data, image_ids[0])[0], arguments.backbone, arguments.weights):
            print(json.dumps(row))
        return
    wanted = min(arguments.photos or len(image_ids), len(image_ids))
    image_ids = [image_ids[i * len(image_ids) // wanted] for i in range(wanted)]
    measured, object_count = measure(arguments.data, image_ids, installed(names))
    print(f"{len(image_ids)} photos, {object_count} objects\n")
    print(table(measured, "regions"), table(measured, "boxes"), seconds_table(measured), sep="\n")
    counts = [*COUNTS, "all"]
    print(json.dumps({"photos": len(image_ids), "objects": object_count, "counts": counts, "methods": measured}))


if __name__ == "__main__":
    main()
