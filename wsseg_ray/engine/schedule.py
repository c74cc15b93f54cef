"""How the learning rate falls."""

from __future__ import annotations


def learning_rate_at(epoch: int, base: float, decay_every: int, factor: float = 0.1) -> float:
    """The learning rate of an epoch, counted from 0: times `factor` after every `decay_every` epochs (Sec. 4.2)."""
    return base * factor ** (epoch // decay_every)
