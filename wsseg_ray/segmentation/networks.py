"""The networks of a run: what each learns from, and how. Imports no torch.

Network_A of the paper learns localization maps (Eq. 3-4), Network_B rough masks; AN from all photos, SN from those
with one label. The rivals of the paper's Table 4 learn from the labels alone. A network of the user's own is a
`Network` too: `segmentation.networks: [my_module:MY_NETWORK]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from wsseg_ray.registry import Registry

Target = Literal["maps", "mask", "truth", "labels"]


@dataclass(frozen=True)
class Network:
    """A segmentation network before it is trained.

    Arguments:
        name: names its folder in the run; letters, digits and _.
        target: what it learns from: the localization maps, the rough mask, the true mask, or the photo's labels alone.
        photos: from which photos: all, those with a single label, or those with a true mask.
        unrefined_of: the network that learns the same with the refinement; "": this one learns with it.
        objective: of target `labels`: its loss, a value of `objectives.OBJECTIVES`.
        starts_as_classifier: whether it begins as START, a classifier of photos.
        max_over_cells: whether few cells get all of the gradient: then the learning rate is the rivals' lower one.
        twin_of: the network that it equals after its first training, or "".
        image_prior: whether predictions are weighed by what the network says of the whole photo (MIL-ILP's prior).
        smoother: how predictions are smoothed, a name of `objectives.SMOOTHERS`, or "".
        activation_maps: whether its first own labels are its activation maps: then it has one round more.
        weak: whether it sees no true mask.
    """

    name: str
    target: Target
    photos: Literal["all", "single", "masked"] = "all"
    unrefined_of: str = ""
    objective: str = ""
    starts_as_classifier: bool = False
    max_over_cells: bool = False
    twin_of: str = ""
    image_prior: bool = False
    smoother: str = ""
    activation_maps: bool = False
    weak: bool = True

    @property
    def kind(self) -> str:
        """For tables: `paper` (it learns from the supervision, as the paper's own), `rival`, `cam` or `ceiling`."""
        if self.target in ("maps", "mask"):
            return "paper"
        return "ceiling" if not self.weak else "cam" if self.activation_maps else "rival"

    @property
    def suffix(self) -> str:
        """Of the columns of `supervision` that it learns from."""
        return "_unrefined" if self.unrefined_of else ""


def unrefined(network: Network) -> Network:
    """The same network, taught without the refinement (Table 3)."""
    return replace(network, name=f"{network.name}_unrefined", unrefined_of=network.name)


def _rival(name: str, objective: str, **more: bool | str) -> Network:
    return Network(name, "labels", objective=objective, starts_as_classifier=True, **more)  # type: ignore[arg-type]


_ILP = {"max_over_cells": True, "image_prior": True}

NETWORKS: Registry[Network] = Registry(
    "network",
    {
        network.name: network
        for network in (
            Network("AN_A", "maps"),
            Network("SN_A", "maps", "single"),
            Network("AN_B", "mask"),
            Network("SN_B", "mask", "single"),
            _rival("MIL_FCN", "mil_fcn", max_over_cells=True),
            _rival("EM_ADAPT", "em_adapt"),
            _rival("CCNN", "ccnn"),
            _rival("ILP", "ilp", **_ILP),
            # One and the same network, whose predictions are smoothed in different ways
            _rival("ILP_SPPXL", "ilp", twin_of="ILP", smoother="superpixels", **_ILP),
            _rival("ILP_BB", "ilp", twin_of="ILP", smoother="boxes", **_ILP),
            _rival("ILP_SEG", "ilp", twin_of="ILP", smoother="regions", **_ILP),
            # Class activation maps as labels: what most people would try first
            Network("CAM", "labels", objective="cam", activation_maps=True),
            # Trained on the true masks: it shows how much is possible
            Network("FULL", "truth", "masked", weak=False),
        )
    },
    contract=Network,
)
START = Network("START", "labels", objective="cam")  # not a network of its own: the classifier that rivals begin as
