"""The device that tensors are on."""

from __future__ import annotations

import torch

from wsseg_ray.recipe import Recipe


def device_of(recipe: Recipe) -> torch.device:
    """A GPU where this process has one and the recipe does not forbid it (`runtime.use_gpu`), else the CPU."""
    return torch.device("cuda" if recipe.runtime.use_gpu and torch.cuda.is_available() else "cpu")
