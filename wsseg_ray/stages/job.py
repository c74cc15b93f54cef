"""What every stage is given: the run, its recipe and its classes. Imports no Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import yaml

from wsseg_ray.datasets import Listing
from wsseg_ray.errors import RecipeError
from wsseg_ray.recipe import Recipe, validate
from wsseg_ray.tables import RunDirectory


@dataclass(frozen=True)
class Job:
    """A run in progress: where it is kept, its recipe, the classes, and the value that each class has in mask files.

    The listing's photos stay on the driver; stages that need photos read the tables.
    """

    run: RunDirectory
    recipe: Recipe
    listing: Listing = field(repr=False)

    @property
    def classes(self) -> list[str]:
        return self.listing.classes

    def __getstate__(self) -> dict[str, Any]:
        # Every task is sent the job; a listing of a million photos must not travel with it.
        return {**self.__dict__, "listing": Listing(self.listing.classes, self.listing.mask_values, [])}


def open_run(run_dir: str) -> Job:
    """A run that is there, to read from: its listing holds no photos.

    Raises RecipeError where the folder is no run.
    """
    place = RunDirectory.at(run_dir)
    if not place.exists("recipe.yaml") or not place.exists("classes.json"):
        raise RecipeError(f"{run_dir} is no run: it holds no recipe.yaml and classes.json")
    recipe = validate(yaml.safe_load(place.read_bytes("recipe.yaml")))
    return Job(place, recipe, Listing(**place.read_json("classes.json"), photos=[]))


def photo_number(image_id: str) -> int:
    """A number of 56 bits that stands for a photo: the same on every machine, in every order."""
    return int.from_bytes(blake2b(image_id.encode(), digest_size=7).digest(), "big")
