"""What does Eq. (1) cost by the number of proposals? Our two engines beside scikit-learn.

    pip install '.[cpu]'
    python benchmarks/refinement.py [--sizes 1e3,1e4,1e5] [--streamed 1e6]

The proposals are drawn: 512 half-normal features (float16 as the tables store them, computed in float32), ten
proposals for a photo and class, and classes as large as in Table 2 of the paper, where 3,763 of 14,983 are persons.
Every engine and size has a process of its own with all cores of the machine, and starts from all features in memory.

    moments    `photo_moments`, `sum_moments` and `moments_distance`, 5,000 proposals at a time, a thread a core
    faiss      `pairwise_sums` with squared_l2, class by class, FAISS's own threads
    sklearn    `pairwise_distances`, class by class and averaged photo by photo; a class whose pairs pass 1 GiB in parts
               (`pairwise_distances_chunked`), BLAS's own threads

Prints seconds (the median of three where one takes less than 10 s), the peak memory of the process beyond what its
imports take, the features included, and the largest relative difference from `moments`; then the same for `moments`
that reads its features from disk, in blocks, twice, and writes the distances, at powers of ten up to `--streamed`
(1e7 proposals are a file of 10 GB in the folder for temporary files). It was written just before, so the operating
system may still have it in memory. Last a JSON line. Exits with 1 where engines differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from wsseg_ray.refinement.distance import SQUARED_L2, moments_distance, pairwise_sums, photo_moments, sum_moments

DIMS = 512
# photos that show an aeroplane, bicycle, bird, ..., tvmonitor in train_aug
PHOTOS = [564, 470, 677, 444, 634, 366, 1062, 979, 1028, 246, 494, 1160, 424, 462, 3763, 467, 285, 455, 481, 522]
GROUP = 10  # proposals of a photo and class, on average
BLOCK = 5000  # proposals
SEED = 0
REPEATS = 3
FAST = 10  # seconds: what takes less is repeated
TOLERANCE = 1e-4
NEEDS = {"moments": "numpy", "faiss": "faiss", "sklearn": "sklearn.metrics"}
INSTALL = {"faiss": "pip install '.[cpu]'", "sklearn": "pip install scikit-learn"}
THREADS = os.cpu_count() or 1


class Block(NamedTuple):
    """Proposals begin..end: the groups of one photo and class, one after the other."""

    begin: int
    end: int
    starts: np.ndarray  # (G,) from the block's first proposal
    classes: np.ndarray  # (G,)


def layout(count: int) -> Iterator[Block]:
    """Blocks of `count` proposals. Full blocks are the same for every count."""
    for begin in range(0, count, BLOCK):
        rng = np.random.default_rng([SEED, begin])
        length = min(BLOCK, count - begin)
        groups = max(length // GROUP, 1)
        sizes = rng.integers(GROUP // 2, GROUP + GROUP // 2, groups, endpoint=True)
        starts = (np.cumsum(sizes) - sizes) * length // sizes.sum()
        classes = rng.choice(len(PHOTOS), groups, p=np.array(PHOTOS) / sum(PHOTOS))
        yield Block(begin, begin + length, starts, classes)


def draw(block: Block) -> np.ndarray:
    """Features (n, DIMS) float16: half-normal, and each class prefers dimensions of its own."""
    rng = np.random.default_rng([SEED, block.begin, 1])
    features = rng.standard_normal((block.end - block.begin, DIMS), np.float32)
    scale = np.random.default_rng(SEED).uniform(0.5, 1.5, (len(PHOTOS), DIMS)).astype(np.float32)
    features *= np.repeat(scale[block.classes], np.diff(block.starts, append=len(features)), axis=0)
    return np.abs(features, out=features).astype(np.float16)


def by_moments(features: np.ndarray) -> np.ndarray:
    blocks = list(layout(len(features)))

    def reduce(block: Block) -> tuple:
        own = photo_moments(features[block.begin : block.end], block.starts)
        return own, sum_moments(block.classes, *own, len(PHOTOS))

    with ThreadPoolExecutor(THREADS) as pool:
        own, parts = zip(*pool.map(reduce, blocks), strict=True)
        sums = tuple(map(sum, zip(*parts, strict=True)))

        def measure(block: Block, own: tuple) -> np.ndarray:
            return moments_distance(features[block.begin : block.end], block.starts, block.classes, own, sums)

        return np.concatenate(list(pool.map(measure, blocks, own)))


def by_faiss(features: np.ndarray) -> np.ndarray:
    def of_class(candidates: np.ndarray, photo: np.ndarray) -> np.ndarray:
        total, others = pairwise_sums(candidates, photo, candidates, photo, SQUARED_L2)
        return total / np.maximum(others, 1)

    return by_class(features, of_class)


def by_sklearn(features: np.ndarray) -> np.ndarray:
    from sklearn.metrics import pairwise_distances_chunked

    def of_class(candidates: np.ndarray, photo: np.ndarray) -> np.ndarray:
        starts = np.flatnonzero(np.diff(photo, prepend=-1))
        counts = np.diff(starts, append=len(photo))

        def average(pairs: np.ndarray, begin: int) -> np.ndarray:
            by_photo = np.add.reduceat(pairs, starts, axis=1) / counts
            other = photo[begin : begin + len(pairs), None] != photo[starts]
            return by_photo.sum(axis=1, where=other) / max(len(starts) - 1, 1)

        parts = pairwise_distances_chunked(
            candidates, reduce_func=average, metric="euclidean", squared=True, working_memory=1024
        )
        return np.concatenate(list(parts))

    return by_class(features, of_class)


def by_class(features: np.ndarray, distance: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """`distance(candidates, photo)` of every class, put back in the order of `features`."""
    blocks = list(layout(len(features)))
    sizes = np.concatenate([np.diff(block.starts, append=block.end - block.begin) for block in blocks])
    photo = np.repeat(np.arange(len(sizes)), sizes)
    classes = np.concatenate([block.classes for block in blocks])[photo]
    found = np.zeros(len(features))
    for k in np.unique(classes):
        rows = np.flatnonzero(classes == k)
        found[rows] = distance(features[rows], photo[rows])
    return found


ENGINES = {"moments": by_moments, "faiss": by_faiss, "sklearn": by_sklearn}


def write(target: Path, count: int) -> None:
    """The features of `count` proposals as float16, row after row."""
    with target.open("wb") as file:
        for block in _progress(layout(count), "write features", count):
            draw(block).tofile(file)


def stream(source: Path, target: Path, count: int) -> None:
    """`moments` of the first `count` proposals of a file of float16 features, into a file of float32 distances."""

    def read(block: Block) -> np.ndarray:
        values = (block.end - block.begin) * DIMS
        stored = np.fromfile(source, np.float16, values, offset=block.begin * DIMS * 2)
        return stored.astype(np.float32).reshape(-1, DIMS)

    def reduce(block: Block) -> tuple:
        return sum_moments(block.classes, *photo_moments(read(block), block.starts), len(PHOTOS))

    def measure(block: Block) -> np.ndarray:
        features = read(block)
        own = photo_moments(features, block.starts)
        return moments_distance(features, block.starts, block.classes, own, sums).astype(np.float32)

    with ThreadPoolExecutor(THREADS) as pool, target.open("wb") as distances:
        sums = (0, 0, 0)
        for part in _progress(_in_turn(pool, reduce, layout(count)), "sums", count):
            sums = tuple(total + own for total, own in zip(sums, part, strict=True))
        for part in _progress(_in_turn(pool, measure, layout(count)), "distances", count):
            part.tofile(distances)


def _progress(blocks: Iterator, name: str, count: int) -> Iterator:
    return tqdm(blocks, name, math.ceil(count / BLOCK), leave=False, disable=None)


def _in_turn(pool: ThreadPoolExecutor, work: Callable, blocks: Iterator[Block]) -> Iterator:
    """`pool.map` in order, which would start all blocks before the first is asked for, with a few at a time."""
    waiting = []
    for block in blocks:
        waiting.append(pool.submit(work, block))
        if len(waiting) > 2 * THREADS:
            yield waiting.pop(0).result()
    for one in waiting:
        yield one.result()


def cost(name: str, count: int) -> tuple[dict[str, float], np.ndarray]:
    """What an engine takes, and its distances."""
    importlib.import_module(NEEDS[name])
    before = _peak_mb()
    features = np.empty((count, DIMS), np.float32)
    for block in layout(count):
        features[block.begin : block.end] = draw(block)
    distances, seconds = _timed(lambda: ENGINES[name](features))
    return _took(seconds, before), distances


def stream_cost(source: Path, target: Path, count: int) -> dict[str, float]:
    before = _peak_mb()
    _, seconds = _timed(lambda: stream(source, target, count))
    return _took(seconds, before)


def _timed(work: Callable) -> tuple:
    seconds = []
    while len(seconds) < REPEATS and max(seconds, default=0) < FAST:
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    return found, float(np.median(seconds))


def _took(seconds: float, before: float) -> dict[str, float]:
    return {
        "seconds": round(seconds, 4),
        "peak_mb": round(_peak_mb() - before, 1),
        "imports_mb": round(before, 1),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(work: Callable, *arguments) -> tuple | dict | None:
    """The work in a fresh process: a process knows only its highest peak.

    It inherits the peak of the process that starts it, so that one must not do heavy work itself.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def installed() -> list[str]:
    """The engines whose library is here; a line on stderr for each of the others."""
    found = []
    for name in ENGINES:
        if importlib.util.find_spec(NEEDS[name].split(".")[0]):
            found.append(name)
        else:
            print(f"{name} is left out, its library is missing: {INSTALL[name]}", file=sys.stderr)
    return found


def in_memory(counts: list[int]) -> list[dict]:
    measured = []
    for count in counts:
        for name in installed():
            took, distances = alone(cost, name, count)
            if name == "moments":
                exact = distances
            difference = np.abs(distances - exact) / np.where(exact > 0, exact, 1)
            measured.append({"engine": name, "proposals": count, **took, "difference": float(difference.max())})
            print(row(measured[-1]), flush=True)
    return measured


def streamed(counts: list[int]) -> list[dict]:
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "features"), Path(folder, "distances")
        alone(write, source, max(counts))
        for count in counts:
            measured.append(
                {"engine": "moments, streamed", "proposals": count, **alone(stream_cost, source, target, count)}
            )
            print(row(measured[-1]), flush=True)
    return measured


def row(took: dict) -> str:
    difference = f"{took['difference']:.0e}" if "difference" in took else ""
    numbers = f"{took['seconds']:.3f} | {took['peak_mb']:.0f} | {took['imports_mb']:.0f}"
    return f"| {took['engine']} | {took['proposals']:,} | {numbers} | {difference} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1e3,1e4,1e5", help="proposals in memory, separated by commas")
    parser.add_argument("--streamed", type=float, default=1e6, help="most proposals read from disk; 0: none")
    arguments = parser.parse_args()
    most = int(arguments.streamed)
    # The processes to come have it before numpy and faiss start their threads.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(THREADS)))
    print(f"{THREADS} threads, {DIMS} dimensions; MB: peak beyond the imports\n")
    print("| engine | proposals | seconds | MB | imports MB | difference |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    memory = in_memory([int(float(size)) for size in arguments.sizes.split(",") if size])
    disk = streamed([count for count in (10**5, 10**6, 10**7) if count < most] + [most]) if most else []
    print("\n" + json.dumps({"threads": THREADS, "dims": DIMS, "in_memory": memory, "streamed": disk}))
    if any(took["difference"] > TOLERANCE for took in memory):
        sys.exit(f"engines differ by more than {TOLERANCE:g}")


if __name__ == "__main__":
    main()
