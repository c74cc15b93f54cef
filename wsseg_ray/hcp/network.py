"""The Hypothesis-CNN-Pooling network (Sec. 3.1): one CNN, shared by all hypotheses of a photo."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from wsseg_ray.hcp.dropout import PhotoDropout
from wsseg_ray.hcp.trunk import BACKBONES, conv_layers, full_precision, initialise


class HypothesisNetwork(nn.Module):
    """Scores hypotheses: conv layers (`trunk`), then fc6, fc7 and the last layer on what is pooled of a hypothesis.

    Everything starts at random, drawn from torch's global generator; `trunk.load_weights` replaces what it can.

    Arguments:
        backbone: vgg16 (4,096-d embedding) or small (128-d).
        classes: object classes; there is no background.
        pooling: how a hypothesis becomes fc6's input: `warp` and `roi` a grid of cells, `segment` one mean, `context`
            one mean and its difference from the rest of the photo.

    Attributes: `stride` (photo pixels a feature cell), `grid` (cells a side of a pooled box), `crop` (pixels a side
    of a warped box), `embedding_dims`, and the buffer `feature_scale`, by which fc6's input is multiplied.
    """

    def __init__(
        self, backbone: Literal["vgg16", "small"], classes: int, pooling: Literal["warp", "roi", "segment", "context"]
    ) -> None:
        super().__init__()
        spec = BACKBONES[backbone]
        self.pooling = pooling
        self.stride, self.grid, self.crop, self.embedding_dims = spec.stride, spec.grid, spec.crop, spec.hidden
        self.trunk = conv_layers(backbone)
        cells = {"segment": 1, "context": 2}.get(pooling, spec.grid**2)
        self.register_buffer("feature_scale", torch.ones(()))
        self.fc6 = nn.Linear(self.trunk.channels * cells, spec.hidden)
        self.fc7 = nn.Linear(spec.hidden, spec.hidden)
        self.dropout6, self.dropout7 = PhotoDropout(spec.dropout), PhotoDropout(spec.dropout)
        self.classifier = nn.Linear(spec.hidden, classes)
        initialise(self.fc6)
        initialise(self.fc7)

    def features(self, photos: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, h, w) of normalised photos (B, 3, H, W); h = H // stride, w = W // stride."""
        return self.trunk(photos)

    def pool_whole(self, maps: torch.Tensor) -> torch.Tensor:
        """What is pooled where the whole map is the hypothesis: a photo in image-fine-tuning, or a warped box.

        `warp` takes maxima (VGG-16's pool5 on a 14x14 map), `roi` means, as RoIAlign does, `segment` one mean, and
        `context` too: nothing lies around the whole.

        Arguments:
            maps: (B, C, h, w).
        Returns (B, C, grid, grid), or (B, C) for `segment` and (B, 2 C) for `context`.
        """
        if self.pooling in ("segment", "context"):
            mean = maps.mean(dim=(2, 3))
            return mean if self.pooling == "segment" else torch.cat([mean, torch.zeros_like(mean)], dim=1)
        pool = functional.adaptive_max_pool2d if self.pooling == "warp" else functional.adaptive_avg_pool2d
        return pool(maps, self.grid)

    def embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """The second last fully connected layer's output (Sec. 3.2), (N, embedding_dims), not negative.

        Arguments:
            pooled: (N, C, grid, grid), or (N, C) for `segment` and (N, 2 C) for `context`.
        """
        hidden = self.dropout6(functional.relu(self.fc6(pooled.flatten(1) * self.feature_scale)))
        return self.dropout7(functional.relu(self.fc7(hidden)))

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of embeddings (N, embedding_dims), always in float32.

        A candidate is chosen at 0.5; near a logit of 8 bfloat16 has steps of 0.06, so a GPU would choose others.
        """
        with full_precision(embedding.device):
            return self.classifier(embedding.float())

    def convert_fc(
        self, fc6_weight: torch.Tensor, fc6_bias: torch.Tensor, fc7_weight: torch.Tensor, fc7_bias: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """VGG-16's fc6 (4096, 25088) and fc7 (4096, 4096) as this network's parameters.

        A segment's mean stands in all 7x7 cells of fc6's input, so fc6's weights are summed over them. What `context`
        adds starts without weight.
        """
        if self.pooling in ("segment", "context"):
            fc6_weight = fc6_weight.unflatten(1, (-1, 7 * 7)).sum(dim=2)
        if self.pooling == "context":
            fc6_weight = torch.cat([fc6_weight, torch.zeros_like(fc6_weight)], dim=1)
        return {"fc6.weight": fc6_weight, "fc6.bias": fc6_bias, "fc7.weight": fc7_weight, "fc7.bias": fc7_bias}


def parameter_groups(
    network: HypothesisNetwork, learning_rate: float, last_learning_rate: float, random_layers: Collection[str]
) -> list[dict[str, Any]]:
    """SGD's two groups (Sec. 4.2): loaded layers, then the last layer and all that starts at random. No frozen ones.

    Arguments:
        random_layers: names of parameters, the second answer of `load_weights`.
    """
    slow, fast = [], []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (fast if name.startswith("classifier.") or name in random_layers else slow).append(parameter)
    return [{"params": slow, "lr": learning_rate}, {"params": fast, "lr": last_learning_rate}]
