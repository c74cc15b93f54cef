"""The boundary of a photo, from the maps of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.base import BaseBackbone
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.backbones.weights import Bare, load_weights
from wsseg_ray.proposals.boundaries import Boundary, BoundaryFinder
from wsseg_ray.proposals.learned import Layers, layers


def load(finder: BoundaryFinder, source: str | Path | bytes, name: str | None = None) -> BaseBackbone:
    """A finder's backbone with weights.

    Arguments:
        source, name: see `backbones.weights.load_weights`; ImageNet's weights, with which the perceptron was trained.
    Raises WeightsError where the weights cannot be used.
    """
    network = Bare(BACKBONES.get(finder.backbone))
    load_weights(network, source, name)
    return network.backbone.eval().requires_grad_(False)


@torch.inference_mode()
def find(finder: BoundaryFinder, backbone: BaseBackbone, photo: np.ndarray) -> Boundary:
    """The boundary of a photo.

    Arguments:
        backbone: from `load`, on any device.
        photo: (H, W, 3) uint8, RGB.
    Costs the backbone's forward pass, and 0.15 s at 500x375.
    """
    maps = outputs(finder, backbone, photo)
    return Boundary(boundary(maps, photo.shape[:2], layers(finder.learned, "boundary"), finder.centred), finder.learned)


def outputs(finder: BoundaryFinder, backbone: BaseBackbone, photo: np.ndarray) -> list[torch.Tensor]:
    """The maps that make the hypercolumn of a photo (H, W, 3) uint8."""
    variant = BACKBONES.get(finder.backbone)
    device = next(backbone.parameters()).device
    return finder.outputs(backbone, normalise(photo, variant.mean, variant.std).to(device))


def boundary(maps: Sequence[torch.Tensor], size: tuple[int, int], head: Layers, centred: bool) -> np.ndarray:
    """Probability that a person draws a boundary through a pixel.

    A perceptron on the hypercolumn, all maps at a pixel. Its first layer is linear, so it is applied to each map at its
    own resolution; the results are resized bilinearly to the photo's size and summed.

    Arguments:
        maps: (1, C, h, w) each, C channels in total, on the device that computes.
        size: height and width of the photo.
        head: weights (out, in) and biases (out,) of three layers; the first has C inputs.
        centred: see `BoundaryFinder`.
    Returns (H, W) float32 in 0..1. Costs 0.15 s at 500x375.
    """
    device = maps[0].device
    (weight, bias), *others = [(torch.from_numpy(w).to(device), torch.from_numpy(b).to(device)) for w, b in head]
    by_size: dict[torch.Size, torch.Tensor] = {}
    nothing = torch.zeros((), device=device)
    for own, part in zip(maps, weight.split([own.shape[1] for own in maps], dim=1), strict=True):
        share = functional.conv2d(own, part[:, :, None, None])
        by_size[share.shape] = by_size.get(share.shape, nothing) + share
    parts = (functional.interpolate(x, size, mode="bilinear", align_corners=centred) for x in by_size.values())
    hidden = sum(parts, nothing)
    hidden = (hidden[0].flatten(1) + bias[:, None]).T  # (H*W, hidden)
    for weight, bias in others:
        hidden = functional.linear(functional.relu(hidden), weight, bias)
    return torch.sigmoid(hidden[:, 0]).reshape(size).cpu().numpy()
