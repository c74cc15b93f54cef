"""Stage `features`: photos per second against the bare backbone in a loop on the same photos, and memory.

    python benchmarks/features.py [--photos 200 800] [--engine ray]

Runs `best` up to `features` with few and with many photos. Once the stage runs, a photo costs the difference of their
seconds by the difference of their photos. The loop has the photos in memory, resized, and does nothing else, with as
many threads as there are cores; it is the mean after both runs. Memory is the most that Ray's processes hold together,
and what this process takes more than before, looked at twice a second. Needs `../shared/data/voc-animals`, or `--voc`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

from wsseg_ray import pipeline, recipe
from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.choices import settle
from wsseg_ray.datasets import list_photos
from wsseg_ray.engine.stage import open_run
from wsseg_ray.stages.features import _whole_cells, frozen_backbone
from wsseg_ray.stages.rows import photo_rows
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import FEATURES, IMAGES

DATA = Path(__file__).resolve().parents[1] / "../shared/data/voc-animals/VOCdevkit/VOC2012"
LOOP = 64  # photos of the bare loop


class Memory:
    """The most that the processes below this one hold together, and that this one takes more than before, in MB."""

    def __init__(self) -> None:
        self.most, self.more, self._stopped = 0.0, 0.0, threading.Event()
        self._before = self._own(psutil.Process())
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stopped.wait(0.5):
            self.more = max(self.more, self._own(me) - self._before)
            self.most = max(self.most, sum(map(self._own, me.children(recursive=True))))

    @staticmethod
    def _own(process: psutil.Process) -> float:
        try:
            memory = process.memory_info()
            return (memory.rss - memory.shared) / 1e6
        except psutil.Error:  # it has ended
            return 0.0


def bare(run: RunDirectory) -> float:
    """Seconds per photo of the backbone in a loop."""
    job = open_run(run)
    shard = job.run.shards(IMAGES.folder, "train")[0]
    rows = [_whole_cells(FEATURES, job, row) for row in photo_rows(job, shard)]
    look = frozen_backbone(job, FEATURES)
    variant = BACKBONES.get(job.recipe.hcp.backbone)
    torch.set_num_threads(os.cpu_count() or 1)
    with torch.no_grad():
        look(normalise(rows[0].whole, variant.mean, variant.std))
        start = time.perf_counter()
        for i in range(LOOP):
            look(normalise(rows[i % len(rows)].whole, variant.mean, variant.std))
    return (time.perf_counter() - start) / LOOP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs=2, default=[200, 800])
    parser.add_argument("--engine", default="ray", choices=["ray", "local"])
    parser.add_argument("--voc", type=Path, default=DATA)
    args = parser.parse_args()
    if not (args.voc / "JPEGImages").is_dir():
        sys.exit(f"skipped: {args.voc} has no JPEGImages; give --voc")
    seconds, memory, counts, loops = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for photos in args.photos:
            settings = [f"dataset.root={args.voc}", f"dataset.limit={photos}", f"runtime.engine={args.engine}"]
            made, _ = settle(recipe.load("best", settings))
            counts.append(len(list_photos(made.dataset).photos))
            place = f"{folder}/{photos}"
            pipeline.run(made, place, "images")
            with Memory() as watched:
                pipeline.run(made, place, "features")
            memory.append((watched.most, watched.more))
            run = RunDirectory.at(place).now()
            seconds.append(run.entry(FEATURES.folder)["seconds"])
            loops.append(bare(run))
        stored = sum(file.stat().st_size for file in Path(run.uri(FEATURES.folder)).iterdir())
    each, loop = (seconds[1] - seconds[0]) / (counts[1] - counts[0]), sum(loops) / 2
    for count, spent, (workers, more) in zip(counts, seconds, memory, strict=True):
        print(f"{count} photos: {spent:.1f} s; Ray's processes at most {workers:.0f} MB, this one {more:.0f} MB more")
    print(f"per photo: stage {1000 * each:.1f} ms, bare loop {1000 * loop:.1f} ms: {loop / each:.2f} of its speed")
    print(f"stored: {stored / counts[1] / 1e6:.2f} MB per photo")


if __name__ == "__main__":
    main()
