"""How fast does a head learn on stored features on a CPU: a batch at once, or a thread for each of its photos?

    python benchmarks/head_step.py [--steps 30] [--batch 8]

The head is that of `best`: `aspp` on EfficientNet-Lite2 at two scales, 944 channels, 128 wide, 7 classes. A photo has
15 to 22 rows of 25 cells, as one of 400 px has. Features and targets are random. Prints milliseconds per photo, the
median of all steps:

    1 thread     the batch at once, on one thread of torch
    N threads    the same on all cores
    by photo     `training.step_by_photo`: each photo alone on one thread, N at once

and the largest difference of the weights from those of the first, in units of the largest weight.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import torch
from torch import nn

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.engine import training
from wsseg_ray.engine.threads import one_thread_each
from wsseg_ray.hcp.dropout import number_photos
from wsseg_ray.segmentation.heads.layers import Pyramid
from wsseg_ray.segmentation.losses import hard_cross_entropy

BACKBONE, CLASSES = "timm:tf_efficientnet_lite2*1,1.5", 7
ROWS, COLUMNS = (19, 17, 21, 16, 18, 20, 22, 15), 25  # cells of photos of 400 px
CHANNELS = 944


Group = tuple[torch.Tensor, torch.Tensor, list[int]]  # of one size: features (b, C, h, w), classes (b, h, w), numbers


class Objective(nn.Module):
    """The mean loss over the cells of a batch; photos of one size pass together, as in the stage."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        about = BACKBONES.get(BACKBONE)
        self.head = Pyramid(CHANNELS, about.dense_hidden, about.dense_dilation, about.dropout, CLASSES)

    def forward(self, batch: list[Group]) -> torch.Tensor:
        losses = []
        for features, classes, numbers in batch:
            number_photos(self.head, numbers)
            losses.append(hard_cross_entropy(self.head({"out": features}), classes) * classes.numel())
        return sum(losses, torch.zeros(())) / sum(classes.numel() for _, classes, _ in batch)


def groups(number: int, size: int, mixed: bool, draw: torch.Generator) -> list[Group]:
    """The photos of a step."""
    found = []
    for place in range(size if mixed else 1):
        rows, photos = (ROWS[place % len(ROWS)], 1) if mixed else (ROWS[0], size)
        features = torch.randn(photos, CHANNELS, rows, COLUMNS, generator=draw)
        classes = torch.randint(0, CLASSES, (photos, rows, COLUMNS), generator=draw)
        found.append((features, classes, [size * number + place + photo for photo in range(photos)]))
    return found


def measure(at_once: bool, threads: int, steps: int, size: int, mixed: bool) -> tuple[float, torch.Tensor]:
    """Seconds per photo, and the weights after all steps."""
    torch.set_num_threads(threads)
    worker = SimpleNamespace(world=1, device=torch.device("cpu"))
    objective, draw, seconds = Objective().train(), torch.Generator().manual_seed(1), []
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01, momentum=0.9)
    with one_thread_each(threads) as pool:
        for number in range(steps):
            batch = groups(number, size, mixed, draw)
            begin = time.perf_counter()
            if at_once:
                training.step(worker, objective, batch, 1, optimizer)
            else:
                alone = [[(f[[i]], c[[i]], [n[i]])] for f, c, n in batch for i in range(len(n))]
                training.step_by_photo(objective, [(one, one[0][1].numel()) for one in alone], optimizer, pool)
            seconds.append((time.perf_counter() - begin) / size)
    weights = torch.cat([parameter.detach().flatten() for parameter in objective.parameters()])
    return statistics.median(seconds), weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    ways = [("1 thread", True, 1), (f"{cores} threads", True, cores), ("by photo", False, cores)]
    for mixed in (False, True):
        print("photos of eight sizes" if mixed else "photos of one size")
        reference = None
        for name, at_once, threads in ways:
            # A fresh process each: it finds OMP_WAIT_POLICY as the package sets it, before it imports torch.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                asked = fresh.submit(measure, at_once, threads, arguments.steps, arguments.batch, mixed)
                seconds, weights = asked.result()
            reference = weights if reference is None else reference
            apart = (weights - reference).abs().max() / reference.abs().max()
            print(f"  {name:12} {1000 * seconds:6.1f} ms per photo, weights differ by {apart:.1e}")


if __name__ == "__main__":
    main()
