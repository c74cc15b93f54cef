"""What does it cost to score 2,000 proposals a photo, how far is that from the floor, and what does Ray add?

    python benchmarks/scoring.py --data VOC2012 [--photos N] [--stage-photos N] [--device cuda] [--half]

`--data` is the folder that holds JPEGImages and ImageSets. The photos of ImageSets/Segmentation/val.txt are taken at
full size. Weights at random cost what learned ones cost; `--weights` takes a file all the same.

The kernel: seconds a photo of `score_proposals` for each pooling, the median over photos and repeats, with photos
decoded and proposals generated before. A second pass with a clock around the layers says which part the trunk and the
fully connected layers (fc) have; `pooling` is the rest. `warp` repeats the same chunk of 64 crops again and again: it
is measured on `--warp-proposals` of the first photo and scaled up. The floor of a layer is the larger of

    its multiply-adds / those a second of a large matrix product, and
    its bytes (weights, input and output, each read or written once) / those a second of a large copy,

both measured in the same process with the same threads and precision; ReLU and max pooling are free. The floor of a
photo is the sum over its layers; a library that convolves with fewer multiply-adds (Winograd) can be faster. `--half`
is float16 on a GPU and bfloat16 on a CPU, by autocast.

The stage: a run on `--stage-photos` of the val photos as its training photos, with `segment` pooling, a network at
random and 400 candidates a label, about as many as a trained one found. `score` on Ray, and then without Ray in one
process (`runtime.engine=local`), each in a fresh process with the same threads that wait in the same way. When a file
of a run was written says where the time goes.

Prints three tables and a JSON line. `--photos 0` and `--stage-photos 0` leave a part out. Takes about 15 minutes on two
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from wsseg_ray import pipeline, recipe
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.backbones.weights import load_weights
from wsseg_ray.datasets import pixels, voc
from wsseg_ray.hcp import LOSSES
from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.hcp.pooling import POOLINGS
from wsseg_ray.hcp.pooling.sums import SumPooling
from wsseg_ray.hcp.scoring import score_proposals
from wsseg_ray.proposals.generate import generate
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.storage import ENTRY, RunDirectory
from wsseg_ray.tables import SCORES

DATA = Path(__file__).resolve().parents[1] / "../shared/data/voc-animals/VOCdevkit/VOC2012"
CLASSES = len(recipe.VOC_CLASSES)
STEPS = ("trunk", "pooling", "fc")
LOSS = LOSSES.get("squared")
REPEATS = 3
STAGE = [
    "dataset.train_split=val",  # full size
    "dataset.val_split=train_aug",
    "proposals.weights=null",
    "hcp.weights=null",
    "hcp.pooling=segment",
    "hcp.loss=squared",
    "hcp.region_rounds=0",
    "hcp.image_epochs=0",
    "hcp.hypothesis_epochs=0",
    "hcp.threshold=0.99",
    "hcp.min_candidates=400",
    "refinement.pca_energy=1",  # 512 dimensions, as features of a trained network keep
    "segmentation.weights=random",
]


class Layer(NamedTuple):
    """What a layer must do: multiply-adds, and numbers read or written."""

    multiply_adds: int
    numbers: int


class Machine(NamedTuple):
    """What the device can do a second, measured."""

    multiply_adds: float
    bytes: float


def layers(network: HypothesisNetwork, height: int, width: int, proposals: int) -> dict[str, list[Layer]]:
    """The layers of each step of `score_proposals` on a photo.

    A bilinear sample is 4 multiply-adds. `segment` and `context` add up few numbers, by sparse matrices that depend on
    the photo: only what they read and write is counted.
    """
    warp = network.pooling.needs_photo
    passes, rows, columns = (proposals, network.crop, network.crop) if warp else (1, height, width)
    crops = proposals * 3 * network.crop**2
    trunk = []
    for layer in network.backbone:
        if isinstance(layer, nn.MaxPool2d):
            rows, columns = rows // 2, columns // 2
        elif isinstance(layer, nn.Conv2d):
            weights, cells = layer.weight.numel(), passes * rows * columns
            trunk.append(Layer(cells * weights, weights + cells * (layer.in_channels + layer.out_channels)))
    features = passes * rows * columns * network.backbone.channels["out"]
    pooled = proposals * network.head.fc6.in_features
    if warp:
        pooling = [Layer(4 * crops, 3 * height * width + crops), Layer(0, features + pooled)]
    elif isinstance(network.pooling, SumPooling):
        pooling = [Layer(0, features + pooled)]
    else:
        pooling = [Layer(4 * 4 * pooled, features + pooled)]  # `roi`: 2x2 samples a cell
    fc = [
        Layer(proposals * layer.weight.numel(), layer.weight.numel() + proposals * sum(layer.weight.shape))
        for layer in (network.head.fc6, network.head.fc7, network.head.classifier)
    ]
    return {"trunk": trunk, "pooling": pooling, "fc": fc}


def floor(steps: dict[str, list[Layer]], machine: Machine, number_bytes: int) -> dict[str, float]:
    """The fewest seconds of each step: of every layer the larger of arithmetic and memory."""
    return {
        step: sum(
            max(of.multiply_adds / machine.multiply_adds, of.numbers * number_bytes / machine.bytes) for of in own
        )
        for step, own in steps.items()
    }


def machine_peak(device: torch.device, dtype: torch.dtype, side: int) -> Machine:
    """Multiply-adds of a product of (side, side) matrices and bytes of a copy, the best of several, a second."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # what convolutions may use is the peak
    a = torch.randn(side, side, device=device).to(dtype)
    product = min(_seconds(lambda: a @ a, device) for _ in range(2 * REPEATS))
    torch.backends.cuda.matmul.allow_tf32 = tf32
    source = torch.zeros(8 * side * side, device=device)  # far beyond any cache
    target = torch.empty_like(source)
    copy = min(_seconds(lambda: target.copy_(source), device) for _ in range(2 * REPEATS))
    return Machine(side**3 / product, 2 * source.nbytes / copy)


def measure(
    network: HypothesisNetwork, photos: list[torch.Tensor], regions: list[RegionProposals], repeats: int
) -> dict[str, float]:
    """Seconds of `score_proposals` a photo, the median, and of its steps: the photo with a clock, the median.

    Arguments:
        photos: (3, H, W) normalised, on the network's device.
    """
    device = photos[0].device
    score_proposals(network, photos[0], regions[0].top(1), LOSS)  # starts libraries
    whole, steps = [], []
    for photo, own in zip(photos, regions, strict=True):
        for _ in range(repeats):
            whole.append(_seconds(partial(score_proposals, network, photo, own, LOSS), device))
        steps.append(_step_seconds(network, photo, own))
    return {
        "seconds": float(np.median(whole)),
        **{step: float(np.median([of[step] for of in steps])) for step in STEPS},
    }


def _step_seconds(network: HypothesisNetwork, photo: torch.Tensor, regions: RegionProposals) -> dict[str, float]:
    spent = dict.fromkeys(STEPS, 0.0)

    def clocked(call: Callable, step: str, argument: torch.Tensor) -> torch.Tensor:
        start = _now(argument.device)
        result = call(argument)
        spent[step] += _now(argument.device) - start
        return result

    of = {"features": "trunk", "embed": "fc", "classify": "fc"}
    with mock.patch.multiple(network, **{name: partial(clocked, getattr(network, name), of[name]) for name in of}):
        whole = _seconds(lambda: score_proposals(network, photo, regions, LOSS), photo.device)
    return {**spent, "pooling": whole - spent["trunk"] - spent["fc"]}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    start = _now(device)
    call()
    return _now(device) - start


def kernel(
    pooling: str,
    photos: list[np.ndarray],
    regions: list[RegionProposals],
    machine: Machine,
    weights: Path | None,
    device: torch.device,
    half: torch.dtype | None,
    warp_proposals: int,
) -> dict[str, float]:
    """What the JSON line says of a pooling: all a photo, of the proposals that the photos have on average."""
    torch.manual_seed(0)
    network = HypothesisNetwork("vgg16", CLASSES, pooling).eval()
    if weights:
        load_weights(network, weights)
    network.to(device)
    number_bytes = half.itemsize if half else 4
    floors, sums = [], []
    for photo, own in zip(photos, regions, strict=True):
        steps = layers(network, *photo.shape[:2], len(own))
        floors.append(sum(floor(steps, machine, number_bytes).values()))
        sums.append(np.sum([layer for step in steps.values() for layer in step], axis=0))
    if network.pooling.needs_photo:
        photos, whole = photos[:1], np.mean([len(own) for own in regions])
        regions = [regions[0].top(warp_proposals)]
        scale = whole / len(regions[0])
    else:
        scale = 1.0
    tensors = [normalise(photo)[0].to(device) for photo in photos]
    with torch.autocast(device.type, half, enabled=half is not None):
        seconds = {name: scale * of for name, of in measure(network, tensors, regions, REPEATS).items()}
    multiply_adds, numbers = np.mean(sums, axis=0)
    return {
        **seconds,
        "floor": float(np.mean(floors)),
        "over_floor": seconds["seconds"] / float(np.mean(floors)),
        "of_peak": multiply_adds / machine.multiply_adds / seconds["seconds"],
        "gmac": multiply_adds / 1e9,
        "gb": numbers * number_bytes / 1e9,
        "scaled": scale,
    }


def kernel_table(measured: dict[str, dict[str, float]]) -> str:
    head = ["pooling", "seconds a photo", *STEPS, "10^9 multiply-adds", "GB", "floor", "over floor", "of peak"]
    lines = ["Seconds a photo of `score_proposals`", "", _row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for pooling, of in measured.items():
        name = pooling if of["scaled"] == 1 else f"{pooling}, scaled up {of['scaled']:.0f}x"
        cells = [f"{of[key]:.3g}" for key in ("seconds", *STEPS, "gmac", "gb", "floor")]
        lines.append(_row([name, *cells, f"{of['over_floor']:.2f}", f"{100 * of['of_peak']:.0f} %"]))
    return "\n".join([*lines, ""])


def stage(data: Path, photos: int, use_gpu: bool) -> dict[str, dict[str, float]]:
    """The stage `score` on Ray, and the same without: photos, seconds and where they went."""
    os.environ.setdefault("RAY_ADDRESS", "local")  # the run is on this machine's disk
    settings = [*STAGE, f"dataset.root={data}", f"dataset.limit={photos}", f"runtime.use_gpu={str(use_gpu).lower()}"]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        pipeline.run(recipe.load("paper-voc12", settings), f"{folder}/before", "train_hcp")
        for engine in ("ray", "local"):
            run = RunDirectory.at(f"{folder}/{engine}")
            shutil.copytree(f"{folder}/before", run.root)
            chosen = recipe.load("paper-voc12", [*settings, f"runtime.engine={engine}"])
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                process.submit(pipeline.run, chosen, run.root, "score").result()
            found[engine] = _stage_times(run.now())
    return found


def _stage_times(run: RunDirectory) -> dict[str, float]:
    """When the stage's files were written, as seconds of its parts."""
    reported = run.read_json("metrics.json")["stages"]["score"]
    if reported["failed"]:
        raise RuntimeError(f"score: {reported['failed']} photos failed: {run.read_json('failures', 'score.json')[:1]}")
    folder = Path(run.uri(SCORES.folder))
    end = (folder / ENTRY).stat().st_mtime
    fitted = (folder / "pca.npz").stat().st_mtime
    written = sorted((file.stat().st_mtime, file.stem) for file in folder.glob("*.parquet"))
    first = len(run.read_shard(SCORES, written[0][1], ["image_id"]))
    running = written[-1][0] - written[0][0]
    return {
        "photos": reported["rows"],
        "seconds": reported["seconds"],
        "pca": fitted - (end - reported["seconds"]),
        "first_photos": first,
        "first": written[0][0] - fitted,
        "running": running,
        "end": end - written[-1][0],
        "rate": (reported["rows"] - first) / running if running else float("nan"),
        "bytes_a_photo": sum(file.stat().st_size for file in folder.glob("*.parquet")) / reported["rows"],
    }


def stage_tables(measured: dict[str, dict[str, float]]) -> str:
    of, alone = measured["ray"], measured["local"]
    rates = {
        "once it runs: without its first shard": lambda own: own["rate"],
        "with every start, without PCA": lambda own: own["photos"] / (own["seconds"] - own["pca"]),
        "as the run reports it, with PCA": lambda own: own["photos"] / own["seconds"],
    }
    parts = {
        "PCA: the network, up to 64 photos, the fit": "pca",
        f"what works on photos starts, and the first {of['first_photos']} photos": "first",
        f"the other {of['photos'] - of['first_photos']} photos": "running",
        "after the last photo": "end",
        "all": "seconds",
    }
    return "\n".join(
        [
            f"Photos a second, {of['photos']} photos, {of['bytes_a_photo'] / 1e3:.0f} kB a photo written",
            "",
            _row(["", "Ray", "local", "Ray / local"]),
            _row(["---", "---:", "---:", "---:"]),
            *(_row([name, f"{a(of):.2f}", f"{a(alone):.2f}", f"{a(of) / a(alone):.2f}"]) for name, a in rates.items()),
            "",
            "Seconds",
            "",
            _row(["", "Ray", "local"]),
            _row(["---", "---:", "---:"]),
            *(_row([name, f"{of[key]:.2f}", f"{alone[key]:.2f}"]) for name, key in parts.items()),
            "",
        ]
    )


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder VOC2012")
    parser.add_argument("--weights", type=Path, help="VGG-16; default: at random, which costs the same")
    parser.add_argument("--photos", type=int, default=8, help="for the kernel, evenly spread over the split")
    parser.add_argument("--proposals", type=int, default=2000, help="a photo")
    parser.add_argument("--warp-proposals", type=int, default=64, help="that warp is measured on")
    parser.add_argument("--stage-photos", type=int, default=48, help="for the stage")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--half", action="store_true", help="the kernel in half precision")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, for the kernel")
    arguments = parser.parse_args()
    split = arguments.data / "ImageSets" / "Segmentation" / "val.txt"
    if not split.is_file():
        print(f"skipped: there is no {split}; --data names the folder VOC2012", file=sys.stderr)
        return
    if arguments.weights and not arguments.weights.is_file():
        print(f"skipped: there is no {arguments.weights}; without --weights they are random", file=sys.stderr)
        return
    device = torch.device(arguments.device)
    found = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}
    if arguments.photos:
        found |= _kernels(arguments, device, voc.read_ids(split))
    if arguments.stage_photos:
        found |= stage(arguments.data.resolve(), arguments.stage_photos, device.type == "cuda")
        print(stage_tables(found))
    print(json.dumps(found))


def _kernels(arguments: argparse.Namespace, device: torch.device, image_ids: list[str]) -> dict[str, object]:
    torch.set_num_threads(arguments.threads)
    half = (torch.float16 if device.type == "cuda" else torch.bfloat16) if arguments.half else None
    wanted = min(arguments.photos, len(image_ids))
    photos = [
        pixels.read_photo(
            (arguments.data / "JPEGImages" / f"{image_ids[i * len(image_ids) // wanted]}.jpg").read_bytes()
        )
        for i in range(wanted)
    ]
    regions = [generate(photo, arguments.proposals)[0] for photo in tqdm(photos, desc="proposals", unit="photo")]
    machine = machine_peak(device, half or torch.float32, 8192 if device.type == "cuda" else 4096)
    options = machine, arguments.weights, device, half, arguments.warp_proposals
    measured = {pooling: kernel(pooling, photos, regions, *options) for pooling in POOLINGS.names}
    faster = measured["warp"]["seconds"] / measured["segment"]["seconds"]
    count = float(np.mean([len(own) for own in regions]))
    print(f"{wanted} photos, {count:.0f} proposals each; {half or torch.float32}, {arguments.threads} threads")
    print(f"{machine.multiply_adds / 1e9:.0f} x 10^9 multiply-adds and {machine.bytes / 1e9:.1f} GB a second\n")
    print(kernel_table(measured))
    print(f"segment is {faster:.0f} times as fast as warp\n", flush=True)
    return {
        "threads": arguments.threads,
        "precision": str(half or torch.float32),
        "photos": wanted,
        "proposals": count,
        "machine": machine._asdict(),
        "kernel": measured,
        "segment_over_warp": faster,
    }


if __name__ == "__main__":
    main()
