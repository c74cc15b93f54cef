import contextlib
import io
import subprocess
import sys
import zlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from wsseg_ray.datasets import pixels
from wsseg_ray.datasets.pixels import PixelError, encode_mask, photo_size, read_mask, read_photo, voc_palette

RAMP = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)


def encode(array: np.ndarray | Image.Image, form: str = "PNG", **options) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{"form": "PNG"}, {"form": "BMP"}, {"form": "WEBP", "lossless": True}])
def test_lossless_formats_come_back(options):
    assert (read_photo(encode(RAMP, **options)) == RAMP).all()


def test_every_mode_becomes_rgb():
    gray = RAMP[..., 0]
    expected = np.repeat(gray[..., None], 3, axis=2)
    assert (read_photo(encode(gray)) == expected).all()
    assert (read_photo(encode(gray.astype(np.uint16) * 257)) == expected).all()
    assert (read_photo(encode(Image.fromarray(gray).convert("LA"))) == expected).all()
    assert (read_photo(encode(Image.fromarray(gray > 99))) == 255 * (expected > 99)).all()
    assert (read_photo(encode(np.dstack([RAMP, gray]))) == RAMP).all()
    palette = Image.fromarray(gray % 7)
    palette.putpalette(voc_palette().tobytes())
    assert (read_photo(encode(palette)) == voc_palette()[gray % 7]).all()
    cmyk = Image.new("CMYK", (16, 12), (0, 255, 255, 0))
    assert np.abs(read_photo(encode(cmyk, "JPEG")).astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("options", [{"form": "PNG"}, {"form": "WEBP", "lossless": True}])
def test_the_first_picture_of_a_film_is_used(options):
    others = [Image.fromarray(255 - RAMP), Image.fromarray(RAMP // 2)]
    assert (read_photo(encode(RAMP, save_all=True, append_images=others, **options)) == RAMP).all()


UPRIGHT = {  # what each EXIF orientation does to the stored array
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
    9: lambda a: a,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[pixels.ORIENTATION] = orientation
    data = encode(RAMP, exif=exif)
    expected = UPRIGHT[orientation](RAMP)
    assert (read_photo(data) == expected).all()
    assert photo_size(data) == expected.shape[:2]
    assert photo_size(data, 8) == read_photo(data, 8).shape[:2]


def test_damaged_exif_is_no_reason_to_refuse():
    assert (read_photo(encode(RAMP, exif=b"Exif\0\0MM\0*\0\0")) == RAMP).all()


def test_shrinks_and_never_enlarges():
    assert read_photo(encode(RAMP), 8).shape == (6, 8, 3)
    assert read_photo(encode(RAMP), 16).shape == read_photo(encode(RAMP), 99).shape == (12, 16, 3)
    assert read_photo(encode(np.zeros((8, 3000, 3), np.uint8)), 100).shape == (1, 100, 3)
    halves = np.repeat(np.array([[[10, 20, 30]], [[50, 60, 70]]], np.uint8), 64, axis=0).repeat(128, axis=1)
    for data in (encode(halves), encode(halves, "JPEG", quality=95)):
        small = read_photo(data, 16)
        assert small.shape == (16, 16, 3)
        assert np.abs(small[0].astype(int) - [10, 20, 30]).max() <= 2
        assert np.abs(small[-1].astype(int) - [50, 60, 70]).max() <= 2


@settings(max_examples=30)
@given(st.integers(40, 400), st.integers(40, 400), st.integers(8, 60), st.sampled_from([500, 4_000_000]))
def test_a_photo_is_shrunk_in_bands_as_in_one_piece(height, width, max_side, band):
    """As Pillow does it, whose copies in other modes would take several times the memory."""
    image = Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width), np.uint8))
    size = photo_size(encode(image), max_side)[::-1]
    expected = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    with mock.patch.object(pixels, "BAND", band):
        np.testing.assert_array_equal(read_photo(encode(image), max_side), np.asarray(expected))


def test_a_small_file_with_a_hundred_megapixels_takes_little_memory(tmp_path):
    """12 kB of a bilevel PNG: a byte per pixel, and no more."""
    Image.new("1", (9900, 9900)).save(tmp_path / "large.png")
    code = """
import pathlib, resource, sys
from wsseg_ray.datasets.pixels import read_photo
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert read_photo(pathlib.Path(sys.argv[1]).read_bytes(), 400).shape == (400, 400, 3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "large.png"], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 200_000, f"{run.stdout} kB"


@given(st.integers(8, 60), st.integers(8, 60), st.integers(16, 40), st.sampled_from(["PNG", "JPEG"]))
def test_photo_size_is_that_of_the_photo(height, width, max_side, form):
    data = encode(np.zeros((height, width, 3), np.uint8), form)
    shape = read_photo(data, max_side).shape[:2]
    assert photo_size(data, max_side) == shape
    assert max(shape) == min(max_side, max(height, width))


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header claims a size."""
    data = bytearray(encode(RAMP))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"not an image", "no image"),
        (b"GIF89a" + bytes(50), "no image"),
        (encode(RAMP)[:20], "damaged"),
        (encode(RAMP[:7]), "16 x 7 pixels are too few"),
        (bomb(10_001, 10_000), "10001 x 10000 pixels are more than the 100 million allowed"),
        (bomb(60_000, 60_000), "far too large"),
        (bomb(0, 5), "."),
    ],
)
def test_refuses_by_the_header(data, message):
    for read in (read_photo, photo_size):
        with pytest.raises(PixelError, match=message):
            read(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP"])
def test_refuses_what_is_cut_off(form):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(noise, form)
    with pytest.raises(PixelError, match=r"truncated or damaged|header is damaged"):
        read_photo(data[: len(data) // 2])


ORIENTED = Image.Exif()
ORIENTED[pixels.ORIENTATION] = 6
VALID = [
    encode(RAMP, "JPEG", exif=ORIENTED),
    encode(RAMP, "JPEG", progressive=True),
    encode(RAMP, exif=ORIENTED),
    encode(RAMP[..., 0].astype(np.uint16)),
    encode(RAMP, "BMP"),
    encode(RAMP, "WEBP"),
    encode_mask(RAMP[..., 0] % 7),
]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=500)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.binary(max_size=4),
)
def test_damaged_bytes_give_an_array_or_a_pixel_error(data, changes, kept, tail):
    data = bytearray(data)
    for position, value in changes:
        data[int(position * len(data))] = value
    data = bytes(data[: max(1, int(kept * len(data)))]) + tail if kept < 0.5 else bytes(data) + tail
    try:
        size = photo_size(data, 24)
    except PixelError:
        size = None
    with contextlib.suppress(PixelError):
        photo = read_photo(data, 24)
        assert photo.dtype == np.uint8 and photo.shape == (*size, 3)
    with contextlib.suppress(PixelError):
        assert read_mask(data, 12, 16, [1, 2], 24).shape == (12, 16)


def test_mask_values_become_classes():
    values = np.array([[0, 8, 12], [255, 3, 12]], np.uint8)
    expected = [[0, 1, 2], [255, 255, 2]]
    for data in (encode_mask(values), encode(values), encode(values.astype(np.uint16))):
        mask = read_mask(data, 2, 3, [8, 12])
        assert mask.dtype == np.uint8 and mask.tolist() == expected
    assert read_mask(encode(np.array([[300, 1]], np.uint16)), 1, 2, [1]).tolist() == [[255, 1]]
    assert read_mask(encode(Image.fromarray(values > 8)), 2, 3, [1]).tolist() == [[0, 0, 1], [1, 0, 1]]


def test_mask_with_a_small_palette_keeps_its_indices():
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
    image.putpalette([0, 0, 0, 9, 9, 9, 9, 9, 9, 7, 7, 7])
    assert read_mask(encode(image, bits=2), 2, 2, [2, 3]).tolist() == [[0, 255], [1, 2]]


def test_a_mask_of_0_and_255_shows_no_class():
    for values in ([[0, 255]], [[255, 255]]):
        with pytest.raises(PixelError, match=r"no values but 0 and 255.* the i-th class must have the value i"):
            read_mask(encode(np.array(values, np.uint8)), 1, 2, [1])


def test_a_mask_whose_palette_was_sorted_anew_is_refused():
    """A program that saves few colours may number them as it likes: 15, a person, was 1, an aeroplane, here."""
    values = np.array([[0, 1, 2]], np.uint8)
    swapped = Image.fromarray(values)
    swapped.putpalette(voc_palette()[[0, 15, 1]].tobytes())
    with pytest.raises(PixelError, match="VOC's colours under other numbers"):
        read_mask(encode(swapped), 1, 3, [1, 15])
    assert read_mask(encode_mask(values), 1, 3, [1, 2]).tolist() == [[0, 1, 2]]
    grey = Image.fromarray(np.array([[0, 128, 3]], np.uint8))
    grey.putpalette(np.arange(256).repeat(3).tolist())
    assert read_mask(encode(grey), 1, 3, [3]).tolist() == [[0, 255, 1]], "colours of its own are no swap"


def test_mask_shrinks_with_its_photo():
    values = np.repeat(np.repeat(np.array([[1, 2], [0, 9]], np.uint8), 20, axis=0), 30, axis=1)
    assert read_mask(encode(values), 2, 3, [1, 2], 3).tolist() == [[1, 2, 2], [0, 255, 255]]
    with pytest.raises(PixelError, match=r"the mask has 60 x 40 pixels.* 30 x 30 after max_side 30"):
        read_mask(encode(values), 30, 30, [1, 2], 30)
    with pytest.raises(PixelError, match=r"60 x 40 pixels.* 61 x 40$"):
        read_mask(encode(values), 40, 61, [1, 2])


@pytest.mark.parametrize("data", [b"", encode(RAMP), encode(RAMP, "JPEG"), encode(np.dstack([RAMP, RAMP[..., 0]]))])
def test_mask_must_be_a_png_of_indices(data):
    with pytest.raises(PixelError):
        read_mask(data, 12, 16, [1])


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@example(np.array([[0, 255]], np.uint8))
def test_encoded_masks_come_back(labels):
    """Of labels that show a class, or nothing but background."""
    if labels.any() and np.isin(labels, (0, 255)).all():
        labels = np.where(labels == 255, 254, labels)
    with Image.open(io.BytesIO(encode_mask(labels))) as image:
        assert image.mode == "P" and (np.asarray(image) == labels).all()
        assert (np.asarray(image.convert("RGB")) == voc_palette()[labels]).all()
    assert (read_mask(encode_mask(labels), *labels.shape, list(range(1, 255))) == labels).all()


@pytest.mark.parametrize("labels", [np.zeros((0, 3), np.uint8), np.zeros(3, np.uint8), np.zeros((2, 2), int)])
def test_only_label_maps_are_encoded(labels):
    with pytest.raises(ValueError, match="labels must be"):
        encode_mask(labels)


def test_palette_is_that_of_voc():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {label: tuple(voc_palette()[label].tolist()) for label in known} == known
    assert voc_palette()[255].tolist() == [224, 224, 192]
