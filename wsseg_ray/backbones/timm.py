"""Backbones of timm: `timm:resnet50`, `timm:vit_small_patch14_dinov2` and a thousand others (the extra `timm`).

`timm:NAME` takes the last level of a plain ViT, and the last two levels of a network whose levels have several strides.
`timm:NAME@2,3,4` takes the levels that it names, counted as timm counts them; -1 is the last.
`timm:NAME*1,1.5` looks at the photo at each of these scales and joins what it sees; `timm:NAME@2,3*1,1.5` has both.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from wsseg_ray.backbones import Backbone
from wsseg_ray.backbones.named import NamedWeights, hub_weights, packaged_weights

if TYPE_CHECKING:
    from wsseg_ray.backbones.timm_layers import TimmBackbone

PACKAGED = "tf_efficientnet_lite2"  # the model whose weights come as a Python package
HIDDEN = 512  # of the classifier of regions: 1,024 took twice as long and gave maps no better
DENSE_HIDDEN = 128  # of segmentation heads
FIELD = 96  # photo pixels that `largefov`'s fc6 is dilated by, as on VGG-16
LARGEST_SCALE = 4
# Arguments that let a model take photos of any size; a model that knows none of them takes any size as it is.
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class Level(NamedTuple):
    """A level of timm's `forward_intermediates`."""

    number: int
    channels: int
    stride: int  # photo pixels from cell to cell


class Levels(NamedTuple):
    """The levels of a model that a backbone gives."""

    joined: tuple[Level, ...]  # as `out`, at the smallest stride among them
    low: Level | None  # half that stride, for heads that draw finer
    is_plain: bool  # a ViT whose levels all have one stride: the tokens of its blocks get the last norm


@cache
def backbone(name: str) -> Backbone:
    """The variant by timm's name of the model, the levels and the scales that are joined. Imports timm.

    Raises ValueError where timm is not installed, has no such model, or the model has no such levels or scales.
    """
    place, _, factors = name.partition("*")
    model, _, asked = place.partition("@")
    scales = scales_of(model, factors)
    made = _on_meta(model)
    levels = levels_of(model, made, asked)
    weights = _weights(model, made)  # before the layers behind the last level are cut off
    _check_sizes(model, made, levels, scales)
    stride = min(level.stride for level in levels.joined)
    low = {"low": levels.low.stride} if levels.low else {}
    config = made.pretrained_cfg
    return Backbone(
        name=f"timm:{name}",
        build=partial(_build, model, levels, scales),
        stride=stride,
        dense_strides={**low, "out": stride},
        centred=False,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        weights=weights,
        hidden=HIDDEN,
        region_cells=partial(_region_cells, stride),
        dense_hidden=DENSE_HIDDEN,
        dense_dilation=max(1, round(FIELD / stride)),
    )


def _region_cells(stride: int, height: int, width: int) -> tuple[int, int]:
    from wsseg_ray.backbones.photos import whole_cells  # imports torch

    rows, columns = whole_cells(height, width, stride)
    return rows // stride, columns // stride


def levels_of(model: str, made: Any, asked: str = "") -> Levels:
    """The levels that a backbone joins, and the finer one below them.

    Arguments:
        model: timm's name, for messages.
        made: the model.
        asked: numbers of levels, such as "2,3,4" or "-1"; "": see the module's text.
    Raises ValueError where the model has no such levels.
    """
    if not hasattr(made, "forward_intermediates") or not getattr(made, "feature_info", None):
        raise ValueError(f"timm's model '{model}' gives no feature maps (it has no forward_intermediates)")
    every = [Level(i, info["num_chs"], info["reduction"]) for i, info in enumerate(made.feature_info)]
    is_plain = len({level.stride for level in every}) == 1
    try:
        numbers = [int(part) for part in asked.split(",")] if asked else [-1] if is_plain else [-2, -1]
        joined = tuple(sorted({every[number] for number in numbers}))
    except (ValueError, IndexError):
        raise ValueError(
            f"timm:{model}@{asked}: levels are numbers from 0 to {len(every) - 1}, or from -1 back, with commas; their "
            f"strides are {', '.join(str(level.stride) for level in every)}"
        ) from None
    stride = min(level.stride for level in joined)
    low = next((level for level in every if 2 * level.stride == stride), None)
    return Levels(joined, low, is_plain)


def scales_of(model: str, asked: str = "") -> tuple[float, ...]:
    """The scales at which a backbone sees a photo, from numbers such as "1,1.5"; "": 1 alone.

    Raises ValueError where they are no different numbers above 0 and up to 4.
    """
    try:
        scales = tuple(float(part) for part in asked.split(",")) if asked else (1.0,)
    except ValueError:
        scales = ()
    if not scales or len(set(scales)) < len(scales) or not all(0 < scale <= LARGEST_SCALE for scale in scales):
        raise ValueError(f"timm:{model}*{asked}: scales are different numbers above 0 and up to {LARGEST_SCALE}")
    return scales


def create(model: str, **options: Any) -> Any:
    """timm's model for photos of any size.

    Raises ValueError where timm is not installed or has no such model.
    """
    try:
        import timm  # an extra
    except ImportError as error:
        raise ValueError(f"timm:{model} needs timm: pip install 'wsseg_ray[timm]'") from error
    for any_size in ANY_SIZE:
        try:
            return timm.create_model(model, **any_size, **options)
        except TypeError:  # it does not know the argument
            if not any_size:
                raise
        except (RuntimeError, ValueError) as error:
            if "retrained" not in str(error) and "nknown model" not in str(error):
                raise
            near = ", ".join(timm.list_models(f"*{model.split('.')[0][:12]}*")[:8])
            raise ValueError(f"timm has no model '{model}' ({error}); similar: {near or 'none'}") from error
    raise AssertionError("the last of ANY_SIZE has no argument")


def _on_meta(model: str) -> Any:
    """The model without weights in memory."""
    import torch

    with torch.device("meta"):
        return create(model)


def _weights(model: str, made: Any) -> dict[str, NamedWeights]:
    found = {}
    if model.split(".")[0] == PACKAGED:
        names = [key for key in made.state_dict() if not key.endswith("num_batches_tracked")]
        found["packaged"] = packaged_weights(lambda: names)
    if repository := made.pretrained_cfg.get("hf_hub_id"):
        size = sum(parameter.numel() for parameter in made.parameters())
        found["pretrained"] = hub_weights(
            partial(create, model, pretrained=True), repository, size, made.pretrained_cfg.get("license") or ""
        )
    return found


def _check_sizes(model: str, made: Any, levels: Levels, scales: tuple[float, ...]) -> None:
    """Raise ValueError where a model takes no photos of unusual sizes. Tensors on `meta` compute nothing."""
    import torch

    from wsseg_ray.backbones.timm_layers import TimmBackbone

    try:
        with torch.device("meta"):
            TimmBackbone(made, levels, scales)(torch.empty(1, 3, 167, 245))
    except Exception as error:  # each family has its own way to say that a size does not suit it
        raise ValueError(f"timm's model '{model}' does not take photos of any size: {error}") from error


def _build(model: str, levels: Levels, scales: tuple[float, ...], dense: bool) -> TimmBackbone:
    from wsseg_ray.backbones.timm_layers import TimmBackbone

    return TimmBackbone(create(model), levels, scales)
