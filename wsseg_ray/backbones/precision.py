"""How precisely a network computes."""

from __future__ import annotations

import torch


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where that is safe, on a GPU that has it; elsewhere nothing changes.

    It has float32's range, so gradients need no scaling and no photo overflows.
    """
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16)


def full_precision(device: torch.device) -> torch.autocast:
    """float32 inside a block of `mixed_precision`, for what must not be rounded."""
    return torch.autocast("cuda" if device.type == "cuda" else "cpu", enabled=False)
