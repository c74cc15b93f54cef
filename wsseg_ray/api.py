"""The Python interface: run a recipe, and use what it trained, in a script or a notebook."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from wsseg_ray import networks, pipeline
from wsseg_ray.recipe import Recipe, run_name
from wsseg_ray.recipe import load as load_recipe

PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")  # of Pillow's images: what a PNG can hold


class TrainedNetwork:
    """A trained network that labels photos.

    Attributes: `name`, and `classes`, the names of the classes 1..C; 0 is background.
    """

    def __init__(self, place: str, name: str | None = None) -> None:
        self._trained = networks.open_network(place, name)
        self.name, self.classes = self._trained.about.name, self._trained.classes

    def predict(self, photo: np.ndarray | Image.Image | str | Path) -> np.ndarray:
        """Label every pixel of a photo.

        The photo is shrunk as the run's photos were, goes through the network, and through the CRF if the run has one;
        the labels are enlarged to the photo's size.

        Arguments:
            photo: (H, W, 3) uint8 RGB, a Pillow image, or the path of a photo.
        Returns (H, W) uint8: 0 background, i + 1 the i-th of `classes`.
        Raises ValueError or OSError where there is no such photo.
        """
        if isinstance(photo, str | Path):
            data = Path(photo).read_bytes()
        else:
            image, buffer = photo if isinstance(photo, Image.Image) else Image.fromarray(photo), io.BytesIO()
            if image.mode not in PNG_MODES:  # such as CMYK
                image = image.convert("RGB")
            image.save(buffer, "png")
            data = buffer.getvalue()
        return networks.predict_photo(self._trained, data)


def load(place: str | Path, network: str | None = None) -> TrainedNetwork:
    """A trained network of a run or of a file, on the CPU, without Ray.

    Arguments:
        place: a run directory, its URI, or a file that `wsseg export --format safetensors` wrote.
        network: such as "SN_B"; None: the network with the best mIoU on val, or the one of the file.
    Raises RecipeError where the run or the network is not there; it says which networks the run has.

    >>> import tempfile, wsseg_ray
    >>> place = tempfile.mkdtemp()
    >>> outcome = wsseg_ray.run("demo", place, SMALL)
    >>> network = wsseg_ray.load(place, "SN_B")
    >>> labels = network.predict(f"{place}/demo/JPEGImages/demo_val_00000.jpg")
    >>> labels.dtype, labels.ndim, bool(labels.max() <= len(network.classes))
    (dtype('uint8'), 2, True)
    """
    return TrainedNetwork(str(place), network)


def run(
    recipe: Recipe | str | Path,
    run_dir: str | Path | None = None,
    settings: Sequence[str] = (),
    until: str | None = None,
) -> pipeline.Outcome:
    """Run a recipe, or go on with it where it stopped.

    Arguments:
        recipe: a shipped recipe's name, a YAML file, a Recipe, or a folder of photos or its file of labels, which are
            run with the recipe `best`.
        run_dir: a folder or a URI; default `runs/<name of the recipe or folder>`.
        settings: changes of the recipe, each "section.key=value", as `--set` takes them.
        until: the last stage to run; None: all, and the report.
    Returns where the report is, and how many photos failed in which stage.
    Raises RecipeError, DatasetError or WeightsError before any work where something cannot be used.

    >>> import tempfile, wsseg_ray
    >>> outcome = wsseg_ray.run("demo", tempfile.mkdtemp(), SMALL, until="supervise")
    >>> outcome.failed
    {}
    """
    if isinstance(recipe, Recipe):
        if settings:
            raise ValueError("settings change a recipe given by name or file, not a Recipe object")
        found, name = recipe, "recipe"
    else:
        found, name = load_recipe(str(recipe), list(settings)), run_name(str(recipe))
    return pipeline.run(found, str(run_dir or f"runs/{name}"), until)
