"""What the classifier of regions and the segmentation network share: conv layers, weights, freezing, photos in."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from wsseg_ray.errors import WeightsError

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB, of photos in 0..1
STD = (0.229, 0.224, 0.225)

PREFIX = re.compile(r"^(features|backbone|trunk)\.")  # of a trunk's tensors in a file

VGG16_FC = {  # the fully connected layers below the 1000-way classifier
    "classifier.0.weight": (4096, 512 * 7 * 7),
    "classifier.0.bias": (4096,),
    "classifier.3.weight": (4096, 4096),
    "classifier.3.bias": (4096,),
}


class Backbone(NamedTuple):
    """A VGG-style trunk: 3x3 conv layers of so many channels, `pool` halves the map."""

    layers: tuple[int | Literal["pool"], ...]
    batch_norm: bool
    stride: int  # photo pixels a feature cell
    grid: int  # cells a side of a pooled box
    crop: int  # pixels a side of a warped box
    hidden: int  # width of fc6 and fc7
    dropout: float  # behind both


BACKBONES = {
    "vgg16": Backbone(
        (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512),
        batch_norm=False,
        stride=16,
        grid=7,
        crop=224,
        hidden=4096,
        dropout=0.5,
    ),
    # For drawn photos of about 100 px: 34 px receptive field, learns from scratch, 4 ms per 96x96 photo on one core.
    # BatchNorm, though it ties a photo to its worker's part of the batch: without it, or with GroupNorm, LayerNorm or
    # standardised weights in its place, the trunk did not learn from scratch (val mAP 26 to 48 % instead of 73 %).
    # No dropout: half of 128 channels is too few to start from (8 epochs on true masks: 37 % mIoU without, 24 % with).
    "small": Backbone(
        (24, "pool", 48, "pool", 96, 96, 96),
        batch_norm=True,
        stride=4,
        grid=3,
        crop=96,
        hidden=128,
        dropout=0.0,
    ),
}


class Trunk(nn.Sequential):
    """Conv layers in a row, of which the first may be frozen: their BatchNorm then keeps its statistics in training."""

    @property
    def channels(self) -> int:
        """Channels of the feature map."""
        return [layer for layer in self if isinstance(layer, nn.Conv2d)][-1].out_channels

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        for layer in self:
            if isinstance(layer, nn.BatchNorm2d) and not layer.weight.requires_grad:
                layer.eval()
        return self

    def maps_of(self, photos: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Feature maps of photos of unlike sizes.

        Photos of equal size pass together, the others apart, layer by layer: filled up to one size, a photo would have
        other features near its border, since a bias and a ReLU make the filling non-zero. In training BatchNorm takes
        its statistics from all of them.

        Arguments:
            photos: (3, H, W) each, normalised.
        Returns (C, h, w) each.
        """
        places: dict[torch.Size, list[int]] = {}
        for place, photo in enumerate(photos):
            places.setdefault(photo.shape, []).append(place)
        maps = [torch.stack([photos[place] for place in own]) for own in places.values()]
        for layer in self:
            joint = isinstance(layer, nn.BatchNorm2d) and layer.training
            maps = _normalised_together(layer, maps) if joint else [layer(own) for own in maps]
        found: dict[int, torch.Tensor] = {}
        for own, same_size in zip(places.values(), maps, strict=True):
            found |= zip(own, same_size, strict=True)
        return [found[place] for place in range(len(photos))]


def _normalised_together(norm: nn.BatchNorm2d, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """BatchNorm of maps (B, C, h, w) of several sizes, with one mean and variance for each channel over all of them."""
    pixels = [own.transpose(0, 1).flatten(1) for own in maps]  # (C, B h w)
    parts = norm(torch.cat(pixels, dim=1)[None, :, :, None])[0, :, :, 0].split([len(own[0]) for own in pixels], dim=1)
    shaped = (part.unflatten(1, (len(own), *own.shape[2:])) for part, own in zip(parts, maps, strict=True))
    return [part.transpose(0, 1).contiguous(memory_format=torch.channels_last) for part in shaped]


def conv_layers(backbone: Literal["vgg16", "small"]) -> Trunk:
    """The conv layers of a backbone, at random, up to the last ReLU (VGG-16: relu5_3, without pool5).

    VGG-16's layers keep the numbers of torchvision's `features`, so that its weights fit by name.
    """
    spec = BACKBONES[backbone]
    layers: list[nn.Module] = []
    channels = 3
    for width in spec.layers:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        if spec.batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU(inplace=True))
        channels = width
    trunk = Trunk(*layers).to(memory_format=torch.channels_last)  # convolves up to three times as fast
    initialise(trunk)
    return trunk


def initialise(module: nn.Module) -> None:
    """He's normal initialisation of every conv and linear layer, zero biases. Draws from torch's global generator."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def normalise(photos: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Photos as the trunk wants them: ImageNet's mean taken off, divided by its standard deviation.

    Arguments:
        photos: (B, H, W, 3) or (H, W, 3) uint8, RGB; a tensor stays on its device.
    Returns (B, 3, H, W) float32, channels last in memory, which convolves faster; one photo gives B = 1.
    Raises ValueError for another shape or dtype.
    """
    if photos.dtype not in (np.uint8, torch.uint8) or photos.ndim not in (3, 4) or photos.shape[-1] != 3:
        raise ValueError(f"photos must be (B, H, W, 3) or (H, W, 3) uint8, got {tuple(photos.shape)} {photos.dtype}")
    tensor = photos if isinstance(photos, torch.Tensor) else torch.tensor(photos)
    batch = tensor.reshape(-1, *photos.shape[-3:]).float()
    mean, std = batch.new_tensor(MEAN), batch.new_tensor(STD)
    return ((batch / 255 - mean) / std).permute(0, 3, 1, 2)


def load_weights(
    network: nn.Module, source: str | Path | bytes, name: str | None = None
) -> tuple[list[str], list[str]]:
    """Start a network from weights: the whole trunk, and fc6 and fc7 where the file is a full VGG-16.

    Reads torchvision's state dict of a classifier with this trunk (VGG-16: `features.*`, `classifier.*`), its conv
    layers alone, or the state dict of a network with the same trunk (`trunk.*`, torchvision: `backbone.*`), of which
    the trunk alone is taken. Half precision becomes float32.

    Arguments:
        network: has a `trunk`, to take fc6 and fc7 too `convert_fc`, and `imagenet` where that is not VGG-16.
        source: a path, the bytes of a file, or `imagenet`: torchvision's download.
        name: what messages call the source; default: its path.
    Returns the names of what was loaded, and of the parameters that were not: they start at random.
    Raises WeightsError.
    """
    name = name or ("the weights" if isinstance(source, bytes) else str(source))
    state = _download(getattr(network, "imagenet", "vgg16")) if source == "imagenet" else _read(source, name)
    own = network.state_dict()
    names = {f"trunk.{PREFIX.sub('', key)}": key for key in state}  # this network's, and the file's
    weights = {key: state[names[key]] for key in own if key.startswith("trunk.") and key in names}
    needed = [key for key in own if key.startswith("trunk.") and not key.endswith("num_batches_tracked")]
    lacking = [key for key in needed if key not in weights]
    if lacking:
        raise WeightsError(
            f"{name}: lacks {len(lacking)} of the trunk's tensors ({', '.join(lacking[:3])}, ...); it must be "
            "torchvision's state dict of a classifier with this trunk (VGG-16: its `features.*` will do), or of a "
            "network with the same trunk (`trunk.*`, `backbone.*`)"
        )
    if state.keys() >= VGG16_FC.keys() and hasattr(network, "convert_fc"):
        for key, shape in VGG16_FC.items():
            _check_shape(name, key, state[key], shape)
        weights |= network.convert_fc(*(state[key] for key in VGG16_FC))
    for key, tensor in weights.items():
        _check_shape(name, names.get(key, key), tensor, own[key].shape)
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{name}: {names.get(key, key)} holds values that are not finite")
    network.load_state_dict(weights, strict=False)
    return list(weights), [key for key, _ in network.named_parameters() if key not in weights]


def freeze(trunk: Trunk, count: Literal["none", "all"] | int) -> None:
    """Train the first `count` conv layers no further, counted from the photo up; the others train.

    BatchNorm behind a frozen conv layer is frozen with it, and keeps its statistics also after `train()`.

    Raises ValueError where the trunk has fewer conv layers.
    """
    convs = sum(isinstance(layer, nn.Conv2d) for layer in trunk)
    frozen = {"none": 0, "all": convs}.get(count, count)
    if frozen > convs:
        raise ValueError(f"cannot freeze {frozen} conv layers of {convs}; `all` freezes every one")
    seen = 0
    for layer in trunk:
        seen += isinstance(layer, nn.Conv2d)
        layer.requires_grad_(seen > frozen)
    trunk.train(trunk.training)


def learning_rate_at(epoch: int, base: float, decay_every: int, factor: float = 0.1) -> float:
    """The learning rate of an epoch, counted from 0: times `factor` after every `decay_every` epochs (Sec. 4.2)."""
    return base * factor ** (epoch // decay_every)


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where that is safe, on a GPU that has it; elsewhere nothing changes.

    It has float32's range, so gradients need no scaling and no photo overflows.
    """
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16)


def full_precision(device: torch.device) -> torch.autocast:
    """float32 inside a block of `mixed_precision`, for what must not be rounded."""
    return torch.autocast("cuda" if device.type == "cuda" else "cpu", enabled=False)


def _download(model: str) -> dict[str, torch.Tensor]:
    from torchvision.models import get_model_weights  # with all its models, a second and a half: here alone

    weights = get_model_weights(model).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, no space, or a download that was cut
        raise WeightsError(
            f"imagenet: {weights.url} cannot be downloaded ({error}); fetch it on another machine and give the "
            "file's path as `weights`, or `null` to start at random"
        ) from error


def _read(source: str | Path | bytes, name: str) -> dict[str, torch.Tensor]:
    if isinstance(source, bytes):
        return _parse(io.BytesIO(source), name)
    try:
        with Path(source).open("rb") as file:
            return _parse(file, name)
    except OSError as error:
        raise WeightsError(f"{name}: cannot be read: {error.strerror}") from error


def _parse(file: BinaryIO, name: str) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise anything: zip, pickle, Unicode, key, seek errors
        raise WeightsError(f"{name}: is not a file of PyTorch weights ({type(error).__name__})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{name}: must hold a state dict (names and tensors), not {type(state).__name__}")
    return {str(key): value.float() if value.is_floating_point() else value for key, value in state.items()}


def _check_shape(name: str, key: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise WeightsError(f"{name}: {key} has shape {tuple(tensor.shape)}, the network needs {tuple(shape)}")
