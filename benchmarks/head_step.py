"""How fast does a head learn on stored features on a CPU: a batch at once, or a thread for each of its photos?

    python benchmarks/head_step.py [--steps 30] [--batch 8]

The head is that of `best`: `aspp` on EfficientNet-Lite2 at two scales, 944 channels, 128 wide, 7 classes. A photo has
19 x 25 cells, as one of 400 px has. Features and targets are random.
Prints milliseconds per photo, the median of all steps:

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
from types import SimpleNamespace

import torch
from torch import nn

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.engine import training
from wsseg_ray.hcp.dropout import number_photos
from wsseg_ray.segmentation.heads.layers import Pyramid
from wsseg_ray.segmentation.losses import hard_cross_entropy

BACKBONE, CLASSES, CELLS = "timm:tf_efficientnet_lite2*1,1.5", 7, (19, 25)
CHANNELS = 944


class Objective(nn.Module):
    """The loss of a batch: features (b, C, h, w), classes (b, h, w), and the photos' numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        about = BACKBONES.get(BACKBONE)
        self.head = Pyramid(CHANNELS, about.dense_hidden, about.dense_dilation, about.dropout, CLASSES)

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor, list[int]]) -> torch.Tensor:
        features, classes, numbers = batch
        number_photos(self.head, numbers)
        return hard_cross_entropy(self.head({"out": features}), classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    cores, weights = len(os.sched_getaffinity(0)), {}
    for name, threads in (("1 thread", 1), (f"{cores} threads", cores), ("by photo", cores)):
        torch.set_num_threads(threads)
        worker = SimpleNamespace(world=1, device=torch.device("cpu"), threads=threads)
        objective, draw, seconds = Objective().train(), torch.Generator().manual_seed(1), []
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.01, momentum=0.9)
        for number in range(arguments.steps):
            features = torch.randn(arguments.batch, CHANNELS, *CELLS, generator=draw)
            classes = torch.randint(0, CLASSES, (arguments.batch, *CELLS), generator=draw)
            numbers = [arguments.batch * number + place for place in range(arguments.batch)]
            begin = time.perf_counter()
            if name == "by photo":
                alone = [(features[[i]], classes[[i]], [numbers[i]]) for i in range(arguments.batch)]
                photos = [(one, one[1].numel()) for one in alone]
                training.step_by_photo(worker, objective, photos, optimizer)
            else:
                training.step(worker, objective, (features, classes, numbers), classes.numel(), optimizer)
            seconds.append((time.perf_counter() - begin) / arguments.batch)
        weights[name] = torch.cat([parameter.detach().flatten() for parameter in objective.parameters()])
        apart = (weights[name] - weights["1 thread"]).abs().max() / weights["1 thread"].abs().max()
        print(f"{name:12} {1000 * statistics.median(seconds):6.1f} ms per photo, weights differ by {apart:.1e}")


if __name__ == "__main__":
    main()
