"""Region proposals from the photo alone: contours -> hierarchies -> combinations -> ranking.

Grouping similar to MCG (Arbeláez, Pont-Tuset et al., CVPR 2014), one file per step. Three parts are learned: the
boundaries that a backbone finds, the strength of contours, and the ranking. They and every constant come from the human
boundaries of BSDS500; no masks of objects were used.
"""

from __future__ import annotations

import higra as hg
import numpy as np
from PIL import Image
from scipy import sparse

from wsseg_ray.proposals import Source, combinations, contours, hierarchies, ranking
from wsseg_ray.proposals.boundaries import Boundary
from wsseg_ray.proposals.learned import PLAIN, layers
from wsseg_ray.proposals.regions import RegionProposals

MAX_WORKING_PIXELS = 500 * 500  # larger photos are shrunk to this; their superpixels are resized back to full size
FINE = 0.25  # share of colour in the watershed: the backbone's boundary is one or two pixels off


def generate(photo: np.ndarray, count: int, boundary: Boundary | None = None) -> tuple[RegionProposals, np.ndarray]:
    """Proposals of a photo.

    Arguments:
        photo: (H, W, 3) uint8, RGB.
        count: how many proposals at most; fewer on small or plain photos.
        boundary: of `shrink(photo)`, see `boundaries.hypercolumn.find`; None: contours come from colour and texture
            only.

    Costs about 1 s at 500x375 on one core, without the cost of `boundary`.

    Returns the proposals and their objectness, in 0..1, (N,) float32 descending. The whole photo comes last, at 0.

    >>> from wsseg_ray.datasets.demo import draw_photo
    >>> photo, _ = draw_photo(seed=0, index=0)
    >>> regions, objectness = generate(photo, count=50)
    >>> len(regions) == len(objectness) <= 50, regions.superpixels.shape == photo.shape[:2]
    (True, True)
    """
    working = shrink(photo)
    if (working == working[:1, :1]).all():
        return _whole(photo)
    parts, seen = cut(working, boundary)
    if len(parts.areas) == 1:
        return _whole(photo)
    learned = boundary.learned if boundary else PLAIN
    strengths = hierarchies.arc_strengths(parts, seen, layers(learned, "arcs"))
    regions = combinations.candidates(parts, hierarchies.trees(parts, seen, strengths))
    order, objectness = ranking.rank(parts, seen, strengths, regions, layers(learned, "ranking"), count)
    members = regions[:, order].T
    if len(order) < count:
        members = np.vstack([members, np.ones((1, len(parts.areas)), bool)])
        objectness = np.append(objectness, np.float32(0))
    proposals = RegionProposals(parts.superpixels, sparse.csr_array(members, dtype=np.float32))
    return (proposals if working is photo else proposals.resized(*photo.shape[:2])[0]), objectness


def shrink(photo: np.ndarray) -> np.ndarray:
    """The photo, shrunk to at most 500x500 pixels in total: the size at which contours and superpixels are found."""
    scale = np.sqrt(MAX_WORKING_PIXELS / (photo.shape[0] * photo.shape[1]))
    if scale >= 1:
        return photo
    height, width = (max(1, int(side * scale)) for side in photo.shape[:2])
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BOX))


def cut(photo: np.ndarray, boundary: Boundary | None = None) -> tuple[hierarchies.Partition, hierarchies.Looks]:
    """Superpixels of a photo with the cues along their arcs, and what they look like.

    Arguments:
        photo: (H, W, 3) uint8, no larger than `shrink` makes it.
        boundary: see `generate`.
    Raises ValueError where the boundary is not of the photo's size.
    """
    if boundary is not None and boundary.strength.shape != photo.shape[:2]:
        raise ValueError(f"a boundary of {boundary.strength.shape} for a photo of {photo.shape[:2]} at working size")
    colours = contours.lab(photo)
    textures = contours.texture(colours[..., 0])
    grid = hg.get_4_adjacency_graph(photo.shape[:2])
    cues = contours.gradients(grid, colours, textures)
    strength = cues[0] / max(cues[0].mean(), 1e-6)
    if boundary is not None:
        source, target = grid.edge_list()
        edges = (boundary.strength.ravel()[source] + boundary.strength.ravel()[target]) / 2
        cues = np.vstack([cues, edges])
        strength = edges / max(edges.mean(), 1e-6) + FINE * strength
    parts = hierarchies.partition(grid, strength, cues)
    return parts, hierarchies.looks(parts.superpixels, parts.areas, colours, textures)


def _whole(photo: np.ndarray) -> tuple[RegionProposals, np.ndarray]:
    whole = sparse.csr_array(np.ones((1, 1), np.float32))
    return RegionProposals(np.zeros(photo.shape[:2], np.uint16), whole), np.zeros(1, np.float32)


SOURCE = Source(from_photo=generate, takes_boundary=True)
