"""From the logits of networks to labels of a photo's pixels: at its size, with priors and the dense CRF.

Imports no Ray: the stages use it, and prediction without Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.recipe import Recipe
from wsseg_ray.segmentation.crf import dense_crf
from wsseg_ray.segmentation.inference import View, at_pixels
from wsseg_ray.segmentation.networks import Network
from wsseg_ray.segmentation.objectives import SMOOTHERS
from wsseg_ray.segmentation.objectives.ilp import image_prior

MAX_PIXELS = 2**21  # that the CRF sees: bounds its memory
MAX_VALUES = 2**26  # probabilities of several networks that go through the CRF together: 256 MB
VOC_SIDE = 500  # pixels of the longer side of VOC's photos, for which DeepLab chose the widths of its CRF
ABSENT = -1e4  # a logit of what cannot be: finite, because bilinear weights of 0 make NaN of infinity


def segment(
    recipe: Recipe,
    networks: Sequence[Network],
    photo: np.ndarray,
    views: Sequence[Sequence[View]],
    present: np.ndarray | None = None,
) -> list[list[np.ndarray]]:
    """Labels (H, W) uint8 of a photo (H, W, 3) by each network, and, where it is on, after the CRF.

    Arguments:
        views: of each network, from `photo_views`.
        present: the classes that the photo can have, as channels 1..C; None: all. Background is always possible.
    Returns, for each network, its labels, and the labels after the CRF.
    """
    size, photo = photo.shape[:2], bounded(photo)
    together = max(1, MAX_VALUES // (len(views[0][0].logits) * photo.shape[0] * photo.shape[1]))
    regions = _regions(recipe, photo) if any(network.smoother for network in networks) else None
    found = []
    for start in range(0, len(networks), together):
        group = zip(networks[start : start + together], views[start : start + together], strict=True)
        shares = torch.stack([_probabilities(network, photo, own, present, regions) for network, own in group])
        labels = [shares.argmax(dim=1).to(torch.uint8).numpy()]
        if recipe.crf.enabled:
            settings = crf_settings(recipe, max(photo.shape[:2]) / max(size))
            labels.append(dense_crf(photo, shares, **settings))
        found += [[enlarge(one, size) for one in own] for own in zip(*labels, strict=True)]
    return found


def probabilities(recipe: Recipe, network: Network, photo: np.ndarray, views: Sequence[View]) -> torch.Tensor:
    """What a network says of a photo (H, W, 3) before the CRF: (C, H, W) float32, a distribution at each pixel.

    Arguments:
        views: of the network, from `photo_views`.
    """
    return _probabilities(network, photo, views, None, _regions(recipe, photo) if network.smoother else None)


def crf_settings(recipe: Recipe, shrunk: float = 1) -> dict[str, Any]:
    """What `dense_crf` is called with: the recipe's CRF, whose widths in pixels shrink with the photo.

    DeepLab's widths are pixels of VOC's photos, whose longer side is 500. With `dataset.max_side` of 200 they are 0.4
    of that; a photo that was shrunk once more takes its share of that.

    Arguments:
        shrunk: side of the photo that the CRF sees by the side of the photo that the network saw.
    """
    settings = recipe.crf.model_dump(exclude={"enabled"})
    scale = shrunk * min(1, (recipe.dataset.max_side or VOC_SIDE) / VOC_SIDE)
    return settings | {name: scale * settings[name] for name in ("bilateral_xy", "spatial_xy")}


def _regions(recipe: Recipe, photo: np.ndarray) -> RegionProposals:
    """The regions that smooth MIL-ILP's predictions: our own, whatever the source of the training photos' regions."""
    from wsseg_ray.proposals.generate import generate  # with its libraries half a second: for these networks alone

    return generate(photo, recipe.proposals.count)[0]


def _probabilities(
    network: Network,
    photo: np.ndarray,
    views: Sequence[View],
    present: np.ndarray | None,
    regions: RegionProposals | None,
) -> torch.Tensor:
    """(C, H, W) float32, a distribution over channels at each pixel of the photo."""
    if present is not None:
        absent = torch.from_numpy(np.setdiff1d(np.arange(1, len(views[0].logits)), present))
        views = [view._replace(logits=view.logits.index_fill(0, absent, ABSENT)) for view in views]
    probabilities = at_pixels(views, *photo.shape[:2]).softmax(dim=0)
    if network.image_prior:
        probabilities = image_prior([view.logits for view in views], probabilities)
    if network.smoother and regions is not None:
        smoothed = SMOOTHERS.get(network.smoother)(probabilities.numpy(), regions)
        probabilities = torch.from_numpy(smoothed).float()
    return probabilities


def bounded(photo: np.ndarray) -> np.ndarray:
    """A photo of at most MAX_PIXELS: smaller ones as they are."""
    height, width = photo.shape[:2]
    if height * width <= MAX_PIXELS:
        return photo
    scale = (MAX_PIXELS / (height * width)) ** 0.5
    return np.asarray(Image.fromarray(photo).resize((int(width * scale), int(height * scale)), Image.Resampling.BOX))


def enlarge(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels (H, W) at a size (height, width), by nearest neighbour."""
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
