"""The networks of a run: what each learns from, and how. Imports no torch.

Network_A of the paper learns localization maps (Eq. 3-4), Network_B rough masks. AN learns from all photos, SN from
photos with one label. The rivals of the paper's Table 4 learn from the labels alone. A user's own network is a
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
        name: also its folder in the run; letters, digits and _.
        target: what it learns from: the localization maps, the rough mask, the true mask, or the photo's labels alone.
        photos: photos that it learns from: all, photos with a single label, or photos with a true mask.
        unrefined_of: the same network trained with the refinement; "": this one is trained with the refinement.
        objective: for target `labels`: its loss, a value of `objectives.OBJECTIVES`.
        starts_as_classifier: whether it starts from the weights of START, a classifier of photos.
        max_over_cells: whether few cells get the whole gradient: then it gets the rivals' lower learning rate.
        twin_of: the network that it equals after its first training, or "".
        image_prior: whether predictions are weighted by the network's scores of the whole photo (MIL-ILP's prior).
        smoother: how predictions are smoothed, a name of `objectives.SMOOTHERS`, or "".
        activation_maps: whether its first own labels are its activation maps: then it has one more round.
        weak: whether it is trained without true masks.
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
        """For tables: `paper` (it learns from the supervision, as in the paper), `rival`, `cam` or `ceiling`."""
        if self.target in ("maps", "mask"):
            return "paper"
        return "ceiling" if not self.weak else "cam" if self.activation_maps else "rival"

    @property
    def suffix(self) -> str:
        """End of the names of the columns of `supervision` that it learns from."""
        return "_unrefined" if self.unrefined_of else ""


def unrefined(network: Network) -> Network:
    """The same network, trained without the refinement (Table 3)."""
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
            # The same network as ILP; only the smoothing of predictions differs
            _rival("ILP_SPPXL", "ilp", twin_of="ILP", smoother="superpixels", **_ILP),
            _rival("ILP_BB", "ilp", twin_of="ILP", smoother="boxes", **_ILP),
            _rival("ILP_SEG", "ilp", twin_of="ILP", smoother="regions", **_ILP),
            # Class activation maps as labels: the simplest method
            Network("CAM", "labels", objective="cam", activation_maps=True),
            # Trained on the true masks: the best that can be expected
            Network("FULL", "truth", "masked", weak=False),
        )
    },
    contract=Network,
)
START = Network("START", "labels", objective="cam")  # not a result: the classifier from whose weights rivals start
