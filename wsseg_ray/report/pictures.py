"""Pictures of the report as `data:` URIs: photos as JPEG, masks and maps as transparent PNGs on top of the photo.

A mask or a map does not repeat the photo's pixels: it is a palette PNG with one opacity per colour, one to a few
kilobytes large.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from wsseg_ray.datasets.pixels import VOID, voc_palette

SIDE = 224  # pixels of a picture's longer side
CLASS_OPACITY = 190  # of 255: colours can be told apart and the photo is still visible
DIMMED = 135  # opacity of the black over background pixels
VOID_OPACITY = 120
HEAT_STOPS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]])  # inferno's quarters
HEAT_OPACITY = (120, 215)  # for value 0 and value 1


def photo_uri(photo: np.ndarray) -> str:
    """A photo, shrunk to `SIDE`, as a JPEG `data:` URI.

    Arguments:
        photo: (H, W, 3) uint8.
    """
    picture = Image.fromarray(photo)
    picture = picture.resize(_fit(*picture.size), Image.Resampling.LANCZOS)
    return picture_uri(picture, "jpeg", quality=82, optimize=True)


def mask_uri(mask: np.ndarray) -> str:
    """A class mask in VOC's colours, as an overlay on its photo: background dims the photo, a class tints it.

    Arguments:
        mask: (H, W) uint8: 0 background, i + 1 class i, 255 void.
    Returns a PNG `data:` URI, shrunk to `SIDE` by nearest neighbour.
    """
    picture = Image.fromarray(mask)
    opacity = np.full(256, CLASS_OPACITY, np.uint8)
    opacity[0], opacity[VOID] = DIMMED, VOID_OPACITY
    return _overlay(picture.resize(_fit(*picture.size), Image.Resampling.NEAREST), voc_palette(), opacity)


def map_uri(heat: np.ndarray) -> str:
    """A map of shares as a heat overlay on its photo: black is 0, pale yellow is 1.

    Arguments:
        heat: (H, W) float; NaN counts as 0, values are clipped to 0..1.
    Returns a PNG `data:` URI, shrunk to `SIDE` by area.
    """
    share = np.clip(np.nan_to_num(heat), 0, 1).astype(np.float32)
    picture = Image.fromarray(share)
    share = np.asarray(picture.resize(_fit(*picture.size), Image.Resampling.BOX))
    levels = np.rint(share * 51).astype(np.uint8) * 5  # 52 levels: no visible steps, and half the file size
    return _overlay(Image.fromarray(levels), heat_ramp(), np.linspace(*HEAT_OPACITY, 256).astype(np.uint8))


def heat_ramp() -> np.ndarray:
    """Colours of a map's values 0..1 in 256 steps, (256, 3) uint8: linear between `HEAT_STOPS`."""
    stops = np.linspace(0, 255, len(HEAT_STOPS))
    channels = [np.interp(np.arange(256), stops, channel) for channel in HEAT_STOPS.T]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def _fit(width: int, height: int) -> tuple[int, int]:
    scale = min(1, SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _overlay(picture: Image.Image, palette: np.ndarray, opacity: np.ndarray) -> str:
    picture.putpalette(palette.tobytes())
    return picture_uri(picture, "png", transparency=opacity.tobytes(), optimize=True)


def picture_uri(picture: Image.Image, kind: str, **options: object) -> str:
    """A picture as a `data:` URI of an image format, with Pillow's options for it."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
