"""A training of two processes, for `test_training`: they import this module and little else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.runs import index_of
from wsseg_ray.engine import training
from wsseg_ray.engine.training import Order, batches, nothing, step


@dataclass
class AWorker:
    """A worker as the loop of a training sees it."""

    rank: int = 0
    world: int = 1
    job: Any = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    preempted: bool = False

    def is_preempted(self) -> bool:
        return self.preempted


class Regression(nn.Module):
    """Mean squared error over the rows of a batch; a layer in between, and one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 1)
        self.frozen.requires_grad_(False)

    def forward(self, batch: torch.Tensor | None) -> torch.Tensor:
        if batch is None:
            return nothing(self)
        return (self.last(self.frozen(self.first(batch[:, :4]).tanh()))[:, 0] - batch[:, 4]).square().mean()


def descend(worker: AWorker) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights after batches of 5, 5 and 1 rows: of the last one the second worker has none."""
    torch.manual_seed(0)
    objective, rows = Regression(), torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.3, momentum=0.9)
    model, losses = training.shared(worker, objective), []
    photos = index_of([("", [str(place) for place in range(len(rows))])])
    order = Order(photos, np.arange(len(rows)), np.arange(len(rows)) % 2)
    for mine, _ in batches(worker, order, 5):
        some = [int(place) for _, place in mine]
        losses.append(step(worker, model, rows[some] if some else None, len(some), optimizer))
    return losses, objective.state_dict()


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(descend(AWorker(rank, 2)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
