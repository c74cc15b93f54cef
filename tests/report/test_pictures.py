import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsseg_ray.report.pictures import SIDE, heat_ramp, map_uri, mask_uri, photo_uri


def decode(uri: str) -> Image.Image:
    head, data = uri.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert head == f"data:image/{image.format.lower()};base64"
    return image


def test_a_mask_tints_classes_and_dims_the_rest():
    mask = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
    rgba = np.asarray(decode(mask_uri(mask)).convert("RGBA"))
    assert rgba[..., :3].tolist() == [
        [[0, 0, 0], [128, 0, 0], [0, 128, 0]],
        [[128, 128, 0], [224, 224, 192], [0, 0, 0]],
    ]
    assert rgba[..., 3].tolist() == [[135, 190, 190], [190, 120, 135]]


def test_a_map_runs_from_black_to_pale_yellow():
    heat = np.array([[0, 1, np.nan, -3, 7, 0.5]])
    rgba = np.asarray(decode(map_uri(heat)).convert("RGBA"))[0]
    assert rgba[0].tolist() == rgba[2].tolist() == rgba[3].tolist() == [0, 0, 4, 120]
    assert rgba[1].tolist() == rgba[4].tolist() == [252, 255, 164, 215]
    assert np.abs(rgba[5, :3].astype(int) - [188, 55, 84]).max() < 6


def test_the_ramp_passes_its_stops_and_brightens():
    ramp = heat_ramp()
    assert ramp.shape == (256, 3) and ramp.dtype == np.uint8
    assert ramp[0].tolist() == [0, 0, 4] and ramp[255].tolist() == [252, 255, 164]
    assert (np.diff(ramp @ np.array([0.2126, 0.7152, 0.0722])) > 0).all()


def test_a_photo_keeps_its_colours():
    photo = np.full((30, 40, 3), (200, 40, 90), np.uint8)
    image = decode(photo_uri(photo))
    assert image.format == "JPEG" and image.size == (40, 30)
    assert np.abs(np.asarray(image).astype(int) - photo).max() < 6


def test_shrinking_a_mask_invents_no_class():
    mask = np.zeros((3 * SIDE, 2 * SIDE), np.uint8)
    mask[:, SIDE:] = 4
    image = decode(mask_uri(mask))
    assert image.size == (round(SIDE * 2 / 3), SIDE)
    assert set(np.unique(np.asarray(image))) == {0, 4}


@settings(max_examples=40)
@given(st.integers(1, 700), st.integers(1, 700))
def test_pictures_of_a_strip_share_one_size(height, width):
    sizes = {
        decode(uri).size
        for uri in (
            photo_uri(np.zeros((height, width, 3), np.uint8)),
            mask_uri(np.zeros((height, width), np.uint8)),
            map_uri(np.zeros((height, width), np.float16)),
        )
    }
    assert len(sizes) == 1
    assert max(sizes.pop()) == min(SIDE, max(height, width))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_maps_of_any_precision_look_alike(dtype):
    heat = np.linspace(0, 1, 12).reshape(3, 4)
    assert map_uri(heat.astype(dtype)) == map_uri(heat)
