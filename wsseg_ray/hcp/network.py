"""The Hypothesis-CNN-Pooling network (Sec. 3.1): one CNN, shared by all hypotheses of a photo."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.base import Projection
from wsseg_ray.backbones.precision import full_precision
from wsseg_ray.backbones.weights import initialise
from wsseg_ray.hcp.dropout import PhotoDropout
from wsseg_ray.hcp.pooling import POOLINGS


class RegionHead(nn.Module):
    """fc6, fc7 and the last layer, on the pooled features of a hypothesis.

    fc6's input is multiplied by the buffer `feature_scale`. All weights start at random, drawn from torch's global
    generator.

    Arguments:
        inputs: pooled features per hypothesis.
        hidden: width of fc6 and fc7.
        dropout: after both.
        classes: object classes; there is no background.
    """

    feature_scale: torch.Tensor

    def __init__(self, inputs: int, hidden: int, dropout: float, classes: int) -> None:
        super().__init__()
        self.register_buffer("feature_scale", torch.ones(()))
        self.fc6 = nn.Linear(inputs, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.dropout6, self.dropout7 = PhotoDropout(dropout), PhotoDropout(dropout)
        self.classifier = nn.Linear(hidden, classes)
        initialise(self.fc6)
        initialise(self.fc7)

    def embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """fc7's output (N, hidden), not negative, from the pooled features (N, ...)."""
        hidden = self.dropout6(functional.relu(self.fc6(pooled.flatten(1) * self.feature_scale)))
        return self.dropout7(functional.relu(self.fc7(hidden)))

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of embeddings (N, hidden), always in float32.

        A candidate is chosen at 0.5. Near a logit of 8 bfloat16 has steps of 0.06, so a GPU would choose different
        candidates with it.
        """
        with full_precision(embedding.device):
            return self.classifier(embedding.float())


class HypothesisNetwork(nn.Module):
    """Scores hypotheses: a backbone, then a head on the pooled features of each hypothesis.

    All weights start at random, drawn from torch's global generator: the backbone, then the head. `load_weights`
    replaces the weights that a file has.

    Arguments:
        backbone: a value of `BACKBONES`, such as vgg16 (4,096-d embedding) or small (128-d).
        classes: object classes; there is no background.
        pooling: a value of `POOLINGS`: how a hypothesis becomes the head's input.
        dims: to which each cell of the map is reduced; None: all channels are kept.

    Attributes: `backbone` and `head` (modules), `pooling` (the variant), `stride` (photo pixels per feature cell),
    `grid` (cells per side of a pooled box), `crop` (pixels per side of a warped box), `embedding_dims`, `mean` and
    `std` (to normalise photos), `named_weights` and `has_fc` (the variant's).

    Raises ValueError where a name is not known, or the backbone cannot be used for regions.
    """

    def __init__(self, backbone: str, classes: int, pooling: str, dims: int | None = None) -> None:
        super().__init__()
        variant = BACKBONES.get(backbone)
        self.pooling = POOLINGS.get(pooling)
        self.embedding_dims = variant.hidden
        self.mean, self.std = variant.mean, variant.std
        self.named_weights, self.has_fc = variant.weights, variant.has_fc
        self.backbone = variant.build(False)
        assert variant.stride is not None  # `build` raises for a backbone that cannot be used for regions
        self.stride, self.grid, self.crop = variant.stride, variant.grid, variant.crop
        channels = self.backbone.channels["out"]
        self.reduce = Projection(channels, dims) if dims else None
        inputs = self.pooling.inputs(dims or channels, variant.grid)
        self.head = RegionHead(inputs, variant.hidden, variant.dropout, classes)

    def features(self, photos: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, h, w) of normalised photos (B, 3, H, W); h = H // stride, w = W // stride."""
        maps = self.backbone(photos)["out"]
        return maps if self.reduce is None else self.reduce(maps)

    def embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """The second last fully connected layer's output (Sec. 3.2), (N, embedding_dims), not negative.

        Arguments:
            pooled: (N, ...), from the network's `pooling`.
        """
        return self.head.embed(pooled)

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of embeddings (N, embedding_dims), always in float32."""
        return self.head.classify(embedding)

    def convert_fc(
        self, fc6_weight: torch.Tensor, fc6_bias: torch.Tensor, fc7_weight: torch.Tensor, fc7_bias: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """VGG-16's fc6 (4096, 25088) and fc7 (4096, 4096) as this network's parameters.

        Returns none where the pooling does not use them.
        """
        converted = self.pooling.convert_fc6(fc6_weight)
        if converted is None:
            return {}
        fc6 = {"head.fc6.weight": converted, "head.fc6.bias": fc6_bias}
        return {**fc6, "head.fc7.weight": fc7_weight, "head.fc7.bias": fc7_bias}


def parameter_groups(
    network: HypothesisNetwork, learning_rate: float, last_learning_rate: float, random_layers: Collection[str]
) -> list[dict[str, Any]]:
    """SGD's two groups (Sec. 4.2): loaded layers; the last layer and all others that start at random. No frozen ones.

    Arguments:
        random_layers: names of parameters, the second result of `load_weights`.
    """
    slow: list[nn.Parameter] = []
    fast: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (fast if name.startswith("head.classifier.") or name in random_layers else slow).append(parameter)
    return [{"params": slow, "lr": learning_rate}, {"params": fast, "lr": last_learning_rate}]
