"""What every stage is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from wsseg_ray.datasets import Listing
from wsseg_ray.recipe import Recipe
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


def photo_number(image_id: str) -> int:
    """A number of 56 bits that stands for a photo: the same on every machine, in every order."""
    return int.from_bytes(blake2b(image_id.encode(), digest_size=7).digest(), "big")
