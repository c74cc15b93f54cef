"""One photo's region proposals on one HTML page that opens offline: contours, a hierarchy, and the first regions."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import higra as hg
import numpy as np
from PIL import Image
from scipy import ndimage

from wsseg_ray.datasets.pixels import PixelError, read_photo
from wsseg_ray.errors import DatasetError
from wsseg_ray.proposals.boundaries import BOUNDARIES, Boundary
from wsseg_ray.proposals.boundaries.hypercolumn import find, load
from wsseg_ray.proposals.generate import cut, generate, shrink
from wsseg_ray.proposals.hierarchies import Partition, arc_strengths, trees
from wsseg_ray.proposals.learned import PLAIN, layers
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.report.pictures import HEAT_STOPS, SIDE, heat_ramp, photo_uri, picture_uri
from wsseg_ray.report.templates import template

LEVELS = (200, 50, 20, 8)  # regions of the hierarchy, from fine to coarse
SHOWN_REGIONS = 50
DIMMED = 0.3  # brightness outside a region


def write(photo: Path, out: Path, backbone: str | None = None, weights: str = "auto", count: int = 2000) -> None:
    """Generate the proposals of a photo and write the page that shows them.

    Arguments:
        photo: a JPEG, PNG, WebP or BMP file.
        out: the page; its folder exists.
        backbone, weights: as in the recipe's section `proposals`.
        count: how many proposals at most.
    Raises DatasetError where the photo cannot be read, WeightsError where the weights cannot be read.
    """
    try:
        pixels = read_photo(photo.read_bytes())
    except OSError as error:
        raise DatasetError(f"{photo}: cannot be read: {error.strerror}") from error
    except PixelError as error:
        raise DatasetError(f"{photo}: {error}") from error
    boundary = None
    if backbone is not None:
        finder = BOUNDARIES.get(backbone)
        boundary = find(finder, load(finder, weights), shrink(pixels))
    out.write_text(render(photo.name, pixels, boundary, count), encoding="utf-8")


def render(name: str, photo: np.ndarray, boundary: Boundary | None = None, count: int = 2000) -> str:
    """The page of one photo: self-contained HTML, no script, no request, under 3 MB.

    Arguments:
        name: the photo's name on the page.
        photo: (H, W, 3) uint8, RGB.
        boundary: see `generate`.
        count: how many proposals at most.
    Costs `generate`, and most of its steps a second time.

    Returns the page. It always encodes as UTF-8: other characters are replaced by question marks.
    """
    started = perf_counter()
    working = shrink(photo)
    proposals, objectness = generate(photo, count, boundary)
    seconds = perf_counter() - started

    contours, levels = [], []
    if len(proposals.areas) > 1:  # a plain photo is one superpixel and has no contour
        parts, seen = cut(working, boundary)
        strengths = arc_strengths(parts, seen, layers(boundary.learned if boundary else PLAIN, "arcs"))
        contours.append(("strength", heat_uri(border_map(parts, strengths))))
        tree = trees(parts, seen, strengths)[0]
        for regions in sorted({min(level, len(parts.areas)) for level in LEVELS}, reverse=True):
            filled = mean_colours(working, level(tree, regions)[parts.superpixels])
            levels.append((regions, picture_uri(Image.fromarray(filled), "png")))
    if boundary is not None:
        contours.append(("backbone", heat_uri(boundary.strength)))

    page = template("proposals.html").render(
        name=name,
        height=photo.shape[0],
        width=photo.shape[1],
        seconds=seconds,
        count=len(proposals),
        superpixels=len(proposals.areas),
        photo=picture_uri(Image.fromarray(working), "jpeg", quality=85),
        ramp=[f"rgb({red} {green} {blue})" for red, green, blue in HEAT_STOPS],
        contours=contours,
        levels=levels,
        regions=list(zip(region_pictures(photo, proposals.top(SHOWN_REGIONS)), objectness.tolist(), strict=False)),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def border_map(parts: Partition, strengths: np.ndarray) -> np.ndarray:
    """Arc strengths (E,) drawn on both pixels of every border of the superpixels, (H, W): 0 inside; where borders
    meet, the largest strength. Costs 8 S^2 bytes."""
    between = np.zeros((len(parts.areas),) * 2)
    between[parts.ends] = between[parts.ends[::-1]] = strengths
    drawn = np.zeros(parts.superpixels.shape)
    for labels, target in ((parts.superpixels, drawn), (parts.superpixels.T, drawn.T)):
        border = between[labels[:-1], labels[1:]]
        np.maximum(target[:-1], border, out=target[:-1])
        np.maximum(target[1:], border, out=target[1:])
    return drawn


def level(tree: hg.Tree, count: int) -> np.ndarray:
    """The region of every leaf after all merges except the last `count` - 1, (S,) 0..count - 1.

    Nodes of a binary partition tree are numbered as they merge.
    """
    parents, top = tree.parents(), tree.num_vertices() - count + 1
    region = np.arange(top)
    for node in range(top - 1, -1, -1):  # parents come before their children
        if parents[node] < top:
            region[node] = region[parents[node]]
    return np.unique(region[: tree.num_leaves()], return_inverse=True)[1]


def mean_colours(photo: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Every region, of labels (H, W), filled with its mean colour: (H, W, 3) uint8."""
    areas = np.bincount(labels.ravel())
    sums = np.stack([np.bincount(labels.ravel(), channel.ravel()) for channel in np.moveaxis(photo, -1, 0)], axis=1)
    return np.rint(sums / areas[:, None]).astype(np.uint8)[labels]


def heat_uri(strength: np.ndarray) -> str:
    """Strengths (H, W) in 0..1 as a PNG `data:` URI: black is 0, pale yellow 1."""
    picture = Image.fromarray(np.rint(strength * 63).astype(np.uint8) * 4)  # 64 levels: half the size, no visible step
    picture.putpalette(heat_ramp().tobytes())
    return picture_uri(picture, "png", optimize=True)


def region_pictures(photo: np.ndarray, proposals: RegionProposals) -> list[str]:
    """`data:` URIs of the photo, at most `SIDE` pixels per side, each with one region bright and the rest dimmed."""
    small = Image.fromarray(photo)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    labels = Image.fromarray(proposals.superpixels.astype(np.int32)).resize(small.size, Image.Resampling.NEAREST)
    inside = (proposals.membership.toarray() > 0)[:, np.asarray(labels)]
    pictures = []
    for region in inside:
        picture = (np.asarray(small) * np.where(region, 1, DIMMED)[..., None]).astype(np.uint8)
        picture[ndimage.binary_dilation(region) & ~region] = HEAT_STOPS[-1]  # visible on dark photos too
        pictures.append(photo_uri(picture))
    return pictures
