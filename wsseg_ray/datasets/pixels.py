"""Photos and masks from bytes to arrays, and masks back to bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

MAX_PIXELS = 100_000_000  # a larger photo fails before it is decoded: 300 MB as RGB
MIN_SIDE = 8  # pixels; networks need a few cells
GAP = 2.0  # a photo is averaged to so many times the wanted size before it is resized
BAND = 4_000_000  # pixels that are averaged at once
VOID = 255
ORIENTATION = 0x0112  # EXIF tag
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PixelError(ValueError):
    """A photo or mask that cannot be read. The message says why."""


def read_photo(data: bytes, max_side: int | None = None) -> np.ndarray:
    """Decode a JPEG, PNG, WebP or BMP photo and turn it by its EXIF orientation.

    Grayscale, palette, CMYK and 16-bit photos become 8-bit RGB; transparency is ignored. A JPEG that is shrunk a lot
    is decoded at a fraction of its size.

    Arguments:
        data: the file's bytes.
        max_side: pixels of the longer side; a larger photo is shrunk to it, a smaller photo is not enlarged.
    Returns (H, W, 3) uint8.
    Raises PixelError where the bytes are empty, not an image or damaged, or the photo is over MAX_PIXELS or under
    MIN_SIDE.
    """
    with _opened(data, ("JPEG", "PNG", "WEBP", "BMP")) as photo:
        _refuse_tiny(photo)
        turn = _orientation(photo)
        size = _shrunk(photo.size, max_side)
        if size != photo.size:
            photo.draft(None, (2 * size[0], 2 * size[1]))
        rgb = _resized(photo, size)
        return np.array(rgb.transpose(TRANSPOSE[turn]) if turn in TRANSPOSE else rgb)


def photo_size(data: bytes, max_side: int | None = None) -> tuple[int, int]:
    """Height and width of the result of `read_photo`, from the header: no pixel is decoded.

    Raises PixelError where the header is not accepted; damage after the header is not found.
    """
    with _opened(data, ("JPEG", "PNG", "WEBP", "BMP")) as photo:
        _refuse_tiny(photo)
        width, height = _shrunk(photo.size, max_side)
        return (width, height) if _orientation(photo) >= 5 else (height, width)


def read_mask(data: bytes, height: int, width: int, mask_values: list[int], max_side: int | None = None) -> np.ndarray:
    """Decode a mask: the indices of a palette PNG or the values of a grayscale one.

    Arguments:
        data: the file's bytes.
        height, width: the photo's size after `max_side`; a larger mask is shrunk to it, by nearest neighbour.
        mask_values: the pixel value of every class.
        max_side: that of the photo.
    Returns (height, width) uint8: 0 background, i + 1 for mask_values[i], 255 for every other value.
    Raises PixelError where it is not such a PNG, its size differs from the photo's, or its values are no classes.
    """
    with _opened(data, ("PNG",)) as mask:
        if mask.mode not in ("P", "L", "1", "I", "I;16", "I;16B"):
            raise PixelError(f"the mask has colours ({mask.mode}); it must be a palette or grayscale PNG")
        if _shrunk(mask.size, max_side) != (width, height):
            raise PixelError(
                f"the mask has {mask.width} x {mask.height} pixels and does not fit its photo of "
                f"{width} x {height}" + (f" after max_side {max_side}" if max_side else "")
            )
        values = np.asarray(mask)
        _refuse_meaningless(mask, values)
    rows = (2 * np.arange(height) + 1) * values.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * values.shape[1] // (2 * width)
    lookup = np.full(256, VOID, np.uint8)
    lookup[0] = 0
    lookup[mask_values] = np.arange(1, len(mask_values) + 1)
    return lookup[np.minimum(values[rows[:, None], columns], VOID).astype(np.uint8)]


def _refuse_meaningless(mask: Image.Image, values: np.ndarray) -> None:
    """Raise PixelError where a mask's values say nothing of classes: it has only 0 and 255, or a program has saved
    VOC's colours under other numbers than VOC's."""
    used = np.unique(values)
    if used.tolist() in ([VOID], [0, VOID]):
        raise PixelError("the mask has no values but 0 and 255, which is void; the i-th class must have the value i")
    if mask.mode != "P":
        return
    colours = np.asarray(mask.getpalette("RGB")).reshape(-1, 3)
    known = {tuple(colour): value for value, colour in enumerate(voc_palette().tolist())}
    meant = [known.get(tuple(colours[value].tolist())) if value < len(colours) else None for value in used.tolist()]
    if None not in meant and meant != used.tolist():
        raise PixelError(
            "the mask has VOC's colours under other numbers than VOC's: a program has reordered its colours, so its "
            "classes are swapped; save the mask with its old palette"
        )


def encode_mask(labels: np.ndarray) -> bytes:
    """A label map as a palette PNG in VOC's colours, the format of its submissions.

    Arguments:
        labels: (H, W) uint8.
    Raises ValueError for any other array.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.size == 0:
        raise ValueError(f"labels must be a non-empty (H, W) uint8 map, got {labels.shape} {labels.dtype}")
    image = Image.fromarray(labels)
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def voc_palette() -> np.ndarray:
    """VOC's colour map, (256, 3) uint8: bits 3b, 3b+1, 3b+2 of the label are bit 7-b of red, green and blue."""
    labels = np.arange(256)[:, None]
    channels = np.arange(3)[None, :]
    bits = [(labels >> (3 * b + channels) & 1) << (7 - b) for b in range(3)]
    return np.sum(bits, axis=0).astype(np.uint8)


@contextmanager
def _opened(data: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """A lazily opened image of acceptable size; every error inside the block becomes a PixelError."""
    if len(data) == 0:
        raise PixelError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PixelError(
                    f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS // 10**6} million allowed"
                )
            yield image
    except PixelError:
        raise
    except Image.UnidentifiedImageError as error:
        raise PixelError(f"the file is no image of format {', '.join(formats)}, or its header is damaged") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PixelError(f"the image is far too large: {error}") from error
    except Exception as error:  # Pillow's decoders raise about ten types for damaged bytes
        raise PixelError(f"the file is truncated or damaged: {error}") from error


def _refuse_tiny(photo: Image.Image) -> None:
    if min(photo.size) < MIN_SIDE:
        raise PixelError(f"{photo.width} x {photo.height} pixels are too few; each side needs {MIN_SIDE}")


def _orientation(photo: Image.Image) -> int:
    """EXIF orientation, 1 to 8. A photo with damaged EXIF data is not turned."""
    try:
        value = Image.Image.getexif(photo).get(ORIENTATION, 1)  # PNG's own getexif would decode the pixels
    except Exception:  # the parser raises many types too
        return 1
    return value if isinstance(value, int) and value in TRANSPOSE else 1


def _shrunk(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    longer = max(size)
    if max_side is None or longer <= max_side:
        return size
    return max(1, round(size[0] * max_side / longer)), max(1, round(size[1] * max_side / longer))


def _resized(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The photo as 8-bit RGB of a size, bilinear.

    A photo that is shrunk a lot is first averaged to at least GAP times the size, which is Pillow's `reducing_gap`, in
    bands of rows: as a whole, its copies in other modes would take up to three times its memory.
    """
    across, down = (max(1, int(have / want / GAP)) for have, want in zip(photo.size, size, strict=True))
    if across == down == 1:
        return _eight_bit(photo).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    width, height = photo.size
    small = Image.new("RGB", (-(-width // across), -(-height // down)))
    rows = max(1, BAND // (width * down)) * down
    for top in range(0, height, rows):
        band = photo.crop((0, top, width, min(height, top + rows)))
        small.paste(_eight_bit(band).convert("RGB").reduce((across, down)), (0, top // down))
    return small.resize(size, Image.Resampling.BILINEAR, box=(0, 0, width / across, height / down))


def _eight_bit(photo: Image.Image) -> Image.Image:
    if not photo.mode.startswith("I"):
        return photo
    return Image.fromarray((np.asarray(photo) >> 8).astype(np.uint8))  # Pillow's conversion would clip at 255
