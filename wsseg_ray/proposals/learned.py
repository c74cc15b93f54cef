"""The generator's learned part: small perceptrons, trained only on the human boundaries of BSDS500.

`benchmarks/train_proposals.py` writes `perceptrons/`, which are in the package: `plain` for contours of colour and
texture alone, and a file for each backbone that finds boundaries. No masks of objects were used.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np

Layers = list[tuple[np.ndarray, np.ndarray]]  # weights (out, in) and biases (out,), float32
PLAIN = "plain"


@cache
def layers(learned: str, name: str) -> Layers:
    """The layers of a perceptron.

    Arguments:
        learned: the file `perceptrons/<learned>.npz`.
        name: boundary, arcs or ranking.
    """
    place = resources.files("wsseg_ray.proposals") / "perceptrons" / f"{learned}.npz"
    with place.open("rb") as file, np.load(file) as kept:
        depth = sum(key.startswith(f"{name}.weight") for key in kept)
        return [
            (kept[f"{name}.weight{i}"].astype(np.float32), kept[f"{name}.bias{i}"].astype(np.float32))
            for i in range(depth)
        ]


def perceive(network: Layers, x: np.ndarray) -> np.ndarray:
    """The output of a perceptron with ReLUs between its layers: (N, in) to (N,) float32."""
    x = x.astype(np.float32)
    for weight, bias in network[:-1]:
        x = np.maximum(x @ weight.T + bias, 0)
    weight, bias = network[-1]
    return (x @ weight.T + bias)[:, 0]
