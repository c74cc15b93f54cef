"""Very many tiny photos through every stage that trains nothing, on Ray, while processes are killed.

    python -m benchmarks.many --photos 1e5 [--kill-every 60] [--out docs/many.svg] [--folder DIR]
    python -m benchmarks.many --photos 1e5 --plan 1024

Photos of 32 x 32 pixels are drawn into tar files (layout `webdataset`); each thousandth one is broken. All have the
same 16 masks of 8 x 8 pixels (source `masks`). HCP is a small network that learns for no epoch. So the work per photo
is little, and the rest is what the pipeline itself takes. Every `--kill-every` seconds one process of Ray that works
on a task or holds an actor is killed with kill -9.

Prints per stage: photos, seconds, photos per second, files and bytes of its table. Then, for each third of the time,
the most memory of the driver, of Ray's control store (GCS), of its other processes and of its object store, and the
most open file handles; memory as a picture too. Then whether each photo is there once, and each broken one among the
failures. Called again with the same folder it goes on, and so do its measurements (DIR/watch.csv).

`--plan SAMPLE` draws and runs only SAMPLE photos, and prints what `wsseg plan` then expects of `--photos`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image

from benchmarks import drawing
from wsseg_ray import pipeline, plan, recipe
from wsseg_ray.engine.stage import open_run
from wsseg_ray.tables import Row, Table

SIDE, CELL = 32, 8
PER_TAR = 20_000
BROKEN_EVERY = 1000
CLASSES = ("red", "green", "blue")
STAGES = ("images", "proposals", "score", "refine", "supervise")
SETTINGS = (
    "dataset.layout=webdataset",
    "dataset.train_split=train",
    "dataset.limit=null",
    "proposals.source=masks",
    "proposals.count=16",
    "hcp.min_area=0",
    "hcp.image_epochs=0",
    "hcp.hypothesis_epochs=0",
    "hcp.min_candidates=4",
    "refinement.pca_dims=16",
    # Not trained here but by `--plan`, which needs whole runs; `FULL` would need true masks
    *("segmentation.networks=[SN_B]", "segmentation.ablation=false", "segmentation.epochs=1"),
    # A photo takes some milliseconds: a task with one shard would be over before Ray Data sends the next one
    *(f"runtime.stages.{stage}.batch_size=1000" for stage in ("images", "proposals", "refine", "supervise")),
)
WORKING = ("ray::Map",)
DRAWN = 300  # points of a line in the picture: each is the most of the samples around it


def name(number: int) -> str:
    return f"photo{number:08d}"


def photo(number: int) -> bytes:
    """A PNG: a noisy ground, and a square whose colour is the photo's class. Every BROKEN_EVERY-th is cut off."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(60, 200, (SIDE // CELL, SIDE // CELL, 3), np.uint8).repeat(CELL, 0).repeat(CELL, 1)
    y, x = rng.integers(0, SIDE - 2 * CELL, 2)
    pixels[y : y + 2 * CELL, x : x + 2 * CELL] = np.eye(3, dtype=np.uint8)[number % 3] * 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()[: 60 if is_broken(number) else None]


def is_broken(number: int) -> bool:
    return number % BROKEN_EVERY == BROKEN_EVERY - 1


def masks() -> bytes:
    """The squares of a grid, as COCO's run lengths."""
    found = []
    for row in range(0, SIDE, CELL):
        for column in range(0, SIDE, CELL):
            mask = np.zeros((SIDE, SIDE), bool)
            mask[row : row + CELL, column : column + CELL] = True
            flips = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=False))
            counts = np.diff([0, *flips, SIDE * SIDE]).tolist()
            found.append({"segmentation": {"size": [SIDE, SIDE], "counts": counts}, "score": 0.5})
    return json.dumps(found).encode()


def draw(count: int, folder: Path) -> None:
    """The data set, and a file of masks per photo, which are links to one file."""
    (folder / "photos").mkdir(parents=True)
    (folder / "masks").mkdir()
    one = folder / "masks.json"
    one.write_bytes(masks())
    for start in range(0, count, PER_TAR):
        with tarfile.open(folder / "photos" / f"train-{start // PER_TAR:06d}.tar", "w") as tar:
            for number in range(start, min(start + PER_TAR, count)):
                for suffix, data in (("png", photo(number)), ("cls", CLASSES[number % 3].encode())):
                    member = tarfile.TarInfo(f"{name(number)}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                if number % 60_000 == 0:  # a file may have some 65,000 links
                    one = folder / f"masks-{number}.json"
                    one.write_bytes(masks())
                os.link(one, folder / "masks" / f"{name(number)}.json")
    with tarfile.open(folder / "photos" / "val-000000.tar", "w") as tar:
        for suffix, data in (("png", photo(0)), ("cls", b"red")):
            member = tarfile.TarInfo(f"val.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


class Sample(NamedTuple):
    """What all processes of a job hold at one time: GB, and the number of open file handles."""

    driver: float
    gcs: float
    others: float
    store: float
    handles: int


class Watch:
    """Memory and file handles over time, and deaths, from a thread.

    Arguments:
        driver: the process whose memory is the driver's; Ray's processes are below it or of its session.
        path: where each sample goes at once, a line each; those of an earlier part of the run stay before them.
    """

    def __init__(self, driver: psutil.Process, kill_every: float, path: Path) -> None:
        self.driver, self._kill_every, self.killed, self._path = driver, kill_every, Counter[str](), path
        self._before = samples(path)[0][-1] if path.exists() and path.stat().st_size else 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        begin = struck = time.monotonic()
        while not self._over.wait(2.0):
            now = time.monotonic()
            try:
                processes = [self.driver, *self.driver.children(recursive=True)]
            except psutil.Error:
                return
            with self._path.open("a") as file:
                file.write(",".join(map(str, (self._before + now - begin, *sample(self.driver, processes)))) + "\n")
            if self._kill_every and now - struck > self._kill_every:
                working = [process for process in processes if _title(process).startswith(WORKING)]
                if working:
                    victim = random.choice(working)
                    self.killed[_title(victim).partition("(")[0]] += 1
                    with suppress(psutil.Error):
                        victim.kill()
                    struck = now


def samples(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The seconds of all samples, (n,), and the samples, (n, the fields of Sample)."""
    found = np.loadtxt(path, delimiter=",", ndmin=2)
    return found[:, 0], found[:, 1:]


def sample(driver: psutil.Process, processes: Sequence[psutil.Process]) -> Sample:
    """Memory of processes without what they share. The object store is the shared memory of the process `raylet`."""
    own, gcs, others, store, handles = 0.0, 0.0, 0.0, 0.0, 0
    for process in processes:
        try:
            name, memory, open_files = process.name(), process.memory_info(), process.num_fds()
        except psutil.Error:
            continue  # it has ended
        alone = (memory.rss - memory.shared) / 1e9
        handles += open_files
        if process == driver:
            own = alone
        elif name == "gcs_server":
            gcs = alone
        else:
            others += alone
        if name == "raylet":
            store = memory.shared / 1e9
    return Sample(own, gcs, others, store, handles)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def check(run: str, count: int) -> str:
    """Whether each photo is in each table once, and each broken one among the failures."""
    job, broken = open_run(run), {name(number) for number in range(count) if is_broken(number)}
    for folder in ("images", "proposals", "scores", "refined", "supervision"):
        rows = list(job.run.rows(Table(folder, Row), ["image_id", "error"]))
        good = Counter(row.image_id for row in rows if not row.error)
        twice = len(rows) - len({row.image_id for row in rows})
        lost = [name(number) for number in range(count) if name(number) not in good]
        if twice or set(lost) != broken:
            return f"{folder}: {twice} rows too many, {len(lost)} photos not good, of them broken {len(broken)}"
    return "every photo is in every table once, and the broken ones alone failed"


def planned(count: int, sample: int) -> None:
    """Print what `wsseg plan` expects of `count` photos, from runs of `sample` and fewer."""
    with tempfile.TemporaryDirectory(prefix="wsseg-many-") as folder:
        draw(sample, Path(folder))
        loaded = recipe.load("demo", settings_of(Path(folder)))
        costs, here, _ = plan.measure(loaded, sample)
    photos = {"train": count, "val": 1}
    costs = {name: cost for name, cost in costs.items() if name in STAGES}
    expected = plan.estimate(loaded, costs, photos, here)
    for row in expected["stages"]:
        cost, rate = costs[row["stage"]], count / row["seconds"]
        print(
            f"{row['stage']:<10} {row['seconds']:8.0f} s {rate:7.0f} photos/s; {cost.fixed:.1f} s, "
            f"{cost.a_shard:.3f} s a shard, {1000 * cost.seconds:.3f} ms a photo"
        )
    print(
        f"{expected['files']} files, {expected['bytes'] / 1e9:.2f} GB, driver {expected['driver_bytes'] / 1e9:.2f} GB"
    )


def settings_of(folder: Path) -> list[str]:
    return [*SETTINGS, f"dataset.root={folder / 'photos'}", f"proposals.root={folder / 'masks'}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=float, default=1e5)
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds; 0: never")
    parser.add_argument("--out", type=Path, help="where the picture of memory goes, an SVG")
    parser.add_argument("--folder", type=Path, help="to draw and run in; kept. Default: a temporary folder")
    parser.add_argument("--plan", type=int, metavar="SAMPLE", help="print a plan from SAMPLE photos instead of the run")
    args = parser.parse_args()
    if args.plan:
        planned(int(args.photos), args.plan)
        return
    count, kept = int(args.photos), args.folder or Path(tempfile.mkdtemp(prefix="wsseg-many-"))
    begin = time.monotonic()
    if not (kept / "drawn").exists():
        for begun in ("photos", "masks"):
            shutil.rmtree(kept / begun, ignore_errors=True)
        draw(count, kept)
        (kept / "drawn").touch()
        print(f"{count} photos drawn in {time.monotonic() - begin:.0f} s")
    settings = settings_of(kept)
    words = [sys.executable, "-m", "wsseg_ray", "run", "demo", "--run-dir", str(kept / "run"), "--until", "supervise"]
    words += [word for setting in settings for word in ("--set", setting)]
    begin = time.monotonic()
    driver = psutil.Popen(words, stdout=subprocess.DEVNULL)
    watch = Watch(driver, args.kill_every, kept / "watch.csv")
    code, seconds = driver.wait(), time.monotonic() - begin
    watch.stop()
    print(f"exit code {code} after {seconds:.0f} s; killed: {dict(watch.killed)}")
    job = open_run(str(kept / "run"))
    for stage in pipeline.stages_of(recipe.load("demo", settings)):
        if stage.name in STAGES:
            entry, sizes = job.run.entry(stage.writes), job.run.sizes(stage.writes)
            if not entry or "worked" not in entry:
                print(f"{stage.name:<10} not done")
                continue
            rate = entry["worked"] / entry["seconds"]
            print(
                f"{stage.name:<10} {entry['rows']:>9} rows {entry['failed']:>6} failed {entry['seconds']:8.0f} s "
                f"{rate:7.0f} photos/s {len(sizes):>7} files {sum(sizes.values()) / 1e9:6.2f} GB"
            )
    seconds_of, seen = samples(kept / "watch.csv")
    print("most in each third of the time:", ", ".join(Sample._fields))
    for part in np.array_split(seen, 3):
        print("  " + ", ".join(f"{most:.2f}" for most in part.max(0)))
    print(check(str(kept / "run"), count))
    if args.out:
        names = ("driver", "Ray's control store", "Ray's other processes", "object store")
        starts = np.arange(0, len(seen), -(-len(seen) // DRAWN))
        seconds_of, seen = seconds_of[starts], np.maximum.reduceat(seen, starts)
        lines = {name: column.tolist() for name, column in zip(names, seen.T, strict=False)}
        args.out.write_text(
            drawing.lines((seconds_of / 60).tolist(), lines, "minutes", "GB", f"{count:,} photos of 32 px")
        )


if __name__ == "__main__":
    main()
