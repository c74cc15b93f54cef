"""How a network's weights begin: at random, or from a file."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from torch import nn

from wsseg_ray.backbones import Backbone
from wsseg_ray.backbones.named import WORDS, NamedWeights
from wsseg_ray.errors import WeightsError

PREFIX = re.compile(r"^(features|backbone|trunk)\.")  # of a backbone's tensors in a file

VGG16_FC = {  # the fully connected layers below the 1000-way classifier
    "classifier.0.weight": (4096, 512 * 7 * 7),
    "classifier.0.bias": (4096,),
    "classifier.3.weight": (4096, 4096),
    "classifier.3.bias": (4096,),
}


def initialise(module: nn.Module) -> None:
    """He's normal initialisation of every conv and linear layer, zero biases. Draws from torch's global generator."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Bare(nn.Module):
    """A backbone without a head, for `load_weights`."""

    def __init__(self, variant: Backbone, dense: bool = False) -> None:
        super().__init__()
        self.named_weights = variant.weights
        self.backbone = variant.build(dense)


def load_weights(
    network: nn.Module, source: str | Path | bytes, name: str | None = None
) -> tuple[list[str], list[str]]:
    """Start a network from weights: the whole backbone, and fc6 and fc7 where the file is a full VGG-16.

    Reads torchvision's or timm's state dict of a classifier with this backbone (VGG-16: `features.*`, `classifier.*`),
    its conv layers alone, or the state dict of a network with the same backbone (`backbone.*`, or `trunk.*` as older
    files have it), of which the backbone alone is taken. Half precision becomes float32.

    Arguments:
        network: has a `backbone`, and `named_weights`, its variant's `weights`. Where it `has_fc`, its `convert_fc`
            turns VGG-16's fc6 and fc7 into parameters of this network. A head of another width starts at random.
        source: a path, the bytes of a file (PyTorch's or safetensors), one of the names in `named_weights`, or `auto`:
            the first of them.
        name: what messages call the source; default: its path.
    Returns the names of what was loaded, and of the parameters that were not: they start at random.
    Raises WeightsError.
    """
    name = name or ("the weights" if isinstance(source, bytes) else str(source))
    state = _named(network, source) if source in WORDS else _read(source, name)
    own = network.state_dict()
    names = {f"backbone.{PREFIX.sub('', key)}": key for key in state}  # this network's, and the file's
    weights = {key: state[names[_plain(key)]] for key in own if _plain(key) in names}
    _check_whole(name, own, weights)
    weights |= _fully_connected(name, network, own, state)
    for key, tensor in weights.items():
        in_file = names.get(_plain(key), key)
        _check_shape(name, in_file, tensor, own[key].shape)
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{name}: {in_file} holds values that are not finite")
    network.load_state_dict(weights, strict=False)
    return list(weights), [key for key, _ in network.named_parameters() if key not in weights]


def _plain(key: str) -> str:
    """A tensor's name without the place that a library's model has inside of its backbone."""
    return key.replace("backbone.model.", "backbone.", 1)


def _named(network: nn.Module, name: str | Path | bytes) -> dict[str, torch.Tensor]:
    """Weights by their name. Raises WeightsError where this backbone has none of this name."""
    there: Mapping[str, NamedWeights] = getattr(network, "named_weights", {})
    if (name != "auto" and name not in there) or not there:
        names = f"there are {', '.join(there)}; or" if there else "there are no weights that can be named;"
        raise WeightsError(f"{name!s}: no such weights of this backbone: {names} give a file, or `null`")
    return _floats(there[next(iter(there)) if name == "auto" else str(name)].read())


def _check_whole(name: str, own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise WeightsError where weights lack a tensor of the network's backbone."""
    needed = [key for key in own if key.startswith("backbone.") and not key.endswith("num_batches_tracked")]
    lacking = [key for key in needed if key not in weights]
    if lacking:
        raise WeightsError(
            f"{name}: lacks {len(lacking)} of the backbone's tensors ({', '.join(lacking[:3])}, ...); it must be "
            "torchvision's or timm's state dict of a classifier with this backbone (VGG-16: its `features.*` will do), "
            "or of a network with the same backbone (`backbone.*`)"
        )


def _fully_connected(
    name: str, network: nn.Module, own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """fc6 and fc7 of a full VGG-16 as the network's parameters; none where it has no use for them."""
    convert = getattr(network, "convert_fc", None)
    if convert is None or not network.has_fc or not state.keys() >= VGG16_FC.keys():
        return {}
    for key, shape in VGG16_FC.items():
        _check_shape(name, key, state[key], shape)
    converted = convert(*(state[key] for key in VGG16_FC))
    fits = all(tensor.shape == own[key].shape for key, tensor in converted.items())  # a head may be less wide
    return converted if fits else {}


def _read(source: str | Path | bytes, name: str) -> dict[str, torch.Tensor]:
    if isinstance(source, bytes):
        return _parse(io.BytesIO(source), name)
    try:
        with Path(source).open("rb") as file:
            return _parse(file, name)
    except OSError as error:
        raise WeightsError(f"{name}: cannot be read: {error.strerror}") from error


def _parse(file: BinaryIO, name: str) -> dict[str, torch.Tensor]:
    data = file.read()
    try:
        if data[8:9] == b"{":  # safetensors: the length of a JSON header, and the header
            state = safetensors.torch.load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise anything: zip, pickle, Unicode, key, seek errors
        raise WeightsError(
            f"{name}: is not a file of PyTorch weights or safetensors ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{name}: must hold a state dict (names and tensors), not {type(state).__name__}")
    return _floats(state)


def _floats(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {str(key): value.float() if value.is_floating_point() else value for key, value in state.items()}


def _check_shape(name: str, key: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise WeightsError(f"{name}: {key} has shape {tuple(tensor.shape)}, the network needs {tuple(shape)}")
