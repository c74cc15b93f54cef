"""From an actor's device to its rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def arrays_of(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Tensors of one type as arrays, with one transfer: a GPU is waited for once, not once per tensor."""
    if not tensors:
        return []
    joined = torch.cat([own.flatten() for own in tensors]).cpu().numpy()
    flat = np.split(joined, np.cumsum([own.numel() for own in tensors])[:-1])
    return [part.reshape(own.shape) for part, own in zip(flat, tensors, strict=True)]
