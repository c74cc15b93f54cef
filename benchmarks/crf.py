"""Our dense CRF beside pydensecrf: do the labels agree, what do they score, what do they cost?

    pip install pydensecrf2      # optional, the rival
    python benchmarks/crf.py [--photos 50] [--sizes 0.2,0.5,2,8] [--classes 7,21] [--repeats 5]

The photos are the first of the val split in ../shared/data/voc-animals, with their masks.

Agreement. No network is trained: an answer is made of the true mask, read every 8 pixels, with some cells moved to
random classes, smoothed 3 x 3, enlarged bilinearly, divided by a temperature, and softmaxed. `sharp` moves 15 % of the
cells and is sure of itself, `flat` moves 30 % and is not. Seven classes are the background and the six animals, the
rest of the mask is ignored; 21 are all of VOC. Prints the share of pixels with equal labels (mean and least over
photos), the share that the CRF changes, and mIoU against the masks without CRF and with either program.

Cost. One photo, enlarged with bicubic interpolation, and a `sharp` answer. Each program and number of threads has a
process of its own, and they take turns, so that what else runs on the machine strikes all alike. Prints the median
seconds, the median processor seconds, both divided by those of pydensecrf (which has one thread), and the peak memory
of the first call beyond imports, photo and probabilities. Last a JSON line. Exits with 1 where a mean agreement is
below 99.5 % or an mIoU differs by more than 0.1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from wsseg_ray.evaluation import iou
from wsseg_ray.segmentation.crf import FLOOR, dense_crf

VOC = Path(__file__).parents[2] / "shared" / "data" / "voc-animals" / "VOCdevkit" / "VOC2012"
ANIMALS = [3, 8, 10, 12, 13, 17]  # VOC's numbers
ANSWERS = {"sharp": (0.15, 1.0), "flat": (0.3, 3.0)}  # share of cells moved, temperature
AGREEMENT = 0.995
MIOU = 0.1
RIVAL = importlib.util.find_spec("pydensecrf") is not None
PROGRAMS = [*([("pydensecrf", 1)] if RIVAL else []), ("ours", 1), ("ours", 2)]


def pydensecrf(photo: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    from pydensecrf.densecrf import DenseCRF2D

    classes, height, width = probabilities.shape
    crf = DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(-np.log(np.maximum(probabilities, FLOOR)).reshape(classes, -1))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=121, srgb=5, rgbim=photo, compat=4)
    return np.array(crf.inference(10)).argmax(axis=0).reshape(height, width).astype(np.uint8)


def answer(mask: np.ndarray, classes: int, kind: str, seed: int) -> np.ndarray:
    """(C, H, W) float32, as a network might answer; 255 counts as background."""
    moved, temperature = ANSWERS[kind]
    random = torch.Generator().manual_seed(seed)
    cells = torch.from_numpy(np.where(mask == 255, 0, mask)[4::8, 4::8]).long()
    other = torch.randint(0, classes, cells.shape, generator=random)
    cells = torch.where(torch.rand(cells.shape, generator=random) < moved, other, cells)
    scores = torch.nn.functional.one_hot(cells, classes).permute(2, 0, 1)[None] * 8 / temperature
    smooth = torch.nn.functional.avg_pool2d(scores, 3, stride=1, padding=1, count_include_pad=False)
    return torch.nn.functional.interpolate(smooth, size=mask.shape, mode="bilinear")[0].softmax(dim=0).numpy()


def load(name: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo and its mask."""
    photo = np.array(Image.open(VOC / "JPEGImages" / f"{name}.jpg").convert("RGB"))
    mask = np.array(Image.open(VOC / "SegmentationClassAug" / f"{name}.png"))
    if classes == 7:
        number = np.full(256, 255, np.uint8)
        number[[0, *ANIMALS]] = range(7)
        mask = number[mask]
    return photo, mask


def agreement(names: list[str], classes: int, kind: str) -> dict:
    matrices = np.zeros((3, classes, classes), np.int64)
    equal, changed = [], []
    for seed, name in enumerate(names):
        photo, mask = load(name, classes)
        probabilities = answer(mask, classes, kind, seed)
        plain = probabilities.argmax(axis=0)
        ours = dense_crf(photo, probabilities)
        theirs = pydensecrf(photo, probabilities)
        equal.append(float((ours == theirs).mean()))
        changed.append(float((ours != plain).mean()))
        matrices += [iou.confusion(labels, mask, classes) for labels in (plain, ours, theirs)]
    plain, ours, theirs = (iou.miou(matrix) for matrix in matrices)
    return {
        "answer": kind,
        "classes": classes,
        "photos": len(names),
        "agreement": statistics.mean(equal),
        "least": min(equal),
        "changed": statistics.mean(changed),
        "miou": plain,
        "miou_ours": ours,
        "miou_pydensecrf": theirs,
    }


def start(folder: str, threads: int) -> None:
    """Of a process: its threads and its data."""
    global DATA
    torch.set_num_threads(threads)
    DATA = np.load(Path(folder, "photo.npy")), np.load(Path(folder, "probabilities.npy"))


def once(program: str) -> tuple[float, float, float]:
    """Seconds, processor seconds, and by how many MB the peak memory of the process grew."""
    run = {"ours": dense_crf, "pydensecrf": pydensecrf}[program]
    before = peak()
    began, worked = time.perf_counter(), time.process_time()
    run(*DATA)
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    return seconds, processor, peak() - before


def peak() -> float:
    """MB of this process. On Linux not from getrusage, whose number starts at that of the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def cost(name: str, megapixels: float, classes: int, repeats: int) -> list[dict]:
    photo, mask = load(name, classes)
    scale = (megapixels * 1e6 / mask.size) ** 0.5
    size = round(mask.shape[1] * scale), round(mask.shape[0] * scale)
    probabilities = answer(np.array(Image.fromarray(mask).resize(size, Image.NEAREST)), classes, "sharp", 0)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "photo.npy"), np.array(Image.fromarray(photo).resize(size, Image.BICUBIC)))
        np.save(Path(folder, "probabilities.npy"), probabilities)
        del probabilities
        measured = take_turns(folder, repeats)
    found = []
    for (program, threads), runs in measured.items():
        took = {
            "program": program,
            "threads": threads,
            "megapixels": megapixels,
            "classes": classes,
            "seconds": statistics.median(run[0] for run in runs),
            "processor_seconds": statistics.median(run[1] for run in runs),
            "peak_mb": runs[0][2],
        }
        found.append(took | {f"{key}_ratio": took[key] / found[0][key] if found else 1.0 for key in RATIOS})
        print(row(found[-1]), flush=True)
    return found


RATIOS = ("seconds", "processor_seconds", "peak_mb")


def take_turns(folder: str, repeats: int) -> dict[tuple[str, int], list[tuple[float, float, float]]]:
    """Of each program the runs after the first, whose peak memory goes to all: A B C A B C."""
    runs = {program: [] for program in PROGRAMS}
    pools = {}
    for program in PROGRAMS:
        os.environ["OMP_NUM_THREADS"] = str(program[1])  # read when the process imports torch
        pools[program] = ProcessPoolExecutor(1, get_context("spawn"), start, (folder, program[1]))
        runs[program].append(pools[program].submit(once, program[0]).result())
    for _ in range(repeats):
        for program, pool in pools.items():
            runs[program].append(pool.submit(once, program[0]).result())
    for pool in pools.values():
        pool.shutdown()
    return {program: [(*run[:2], measured[0][2]) for run in measured[1:]] for program, measured in runs.items()}


def row(took: dict) -> str:
    numbers = " | ".join(f"{took[key]:.2f} | {took[f'{key}_ratio']:.2f}" for key in RATIOS[:2])
    memory = f"{took['peak_mb']:.0f} | {took['peak_mb_ratio']:.2f}"
    return (
        f"| {took['megapixels']:g} | {took['classes']} | {took['program']}, {took['threads']} | {numbers} | {memory} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=50, help="of the agreement; 0: none")
    parser.add_argument("--sizes", default="0.2,0.5,2,8", help="megapixels, separated by commas; empty: no cost")
    parser.add_argument("--classes", default="7,21", help="of the cost, separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="of each cost, after one run that warms up")
    arguments = parser.parse_args()
    if not VOC.exists():
        sys.exit("the photos are missing: ../shared/data/voc-animals")
    names = (VOC / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    agreements = []
    if arguments.photos and not RIVAL:
        print("no agreement: pip install pydensecrf2\n")
    elif arguments.photos:
        print("| answer | classes | photos | equal % | least % | changed % | mIoU | ours | pydensecrf |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for kind, classes in (("sharp", 7), ("flat", 7), ("sharp", 21), ("flat", 21)):
            took = agreement(names[: arguments.photos], classes, kind)
            shares = " | ".join(f"{100 * took[key]:.3f}" for key in ("agreement", "least", "changed"))
            scores = " | ".join(f"{took[key]:.2f}" for key in ("miou", "miou_ours", "miou_pydensecrf"))
            print(f"| {kind} | {classes} | {took['photos']} | {shares} | {scores} |", flush=True)
            agreements.append(took)
    print("\n| MP | classes | program, threads | seconds | ratio | processor seconds | ratio | MB | ratio |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    costs = [
        took
        for size in filter(None, arguments.sizes.split(","))
        for classes in arguments.classes.split(",")
        for took in cost(names[0], float(size), int(classes), arguments.repeats)
    ]
    print("\n" + json.dumps({"agreement": agreements, "cost": costs}))
    if any(
        took["agreement"] < AGREEMENT or abs(took["miou_ours"] - took["miou_pydensecrf"]) > MIOU for took in agreements
    ):
        sys.exit(f"labels agree on less than {AGREEMENT:.1%} or mIoU differs by more than {MIOU}")


if __name__ == "__main__":
    main()
