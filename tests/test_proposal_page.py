import base64
import io
import re

import higra as hg
import numpy as np
import pytest
from PIL import Image

from wsseg_ray.errors import DatasetError
from wsseg_ray.proposal_page import border_map, heat_uri, level, mean_colours, region_pictures, render, write
from wsseg_ray.proposals.boundaries import Boundary
from wsseg_ray.proposals.hierarchies import Partition
from wsseg_ray.proposals.regions import from_masks

HOSTILE = '<script>alert("1")</script>\udce9\u202e.jpg'


@pytest.fixture
def photo() -> np.ndarray:
    """A bright disc and a dark bar on noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 120, (60, 90, 3))
    rows, columns = np.indices((60, 90))
    pixels[np.hypot(rows - 25, columns - 30) < 16] = (220, 60, 40)
    pixels[45:52, 50:85] = (20, 30, 90)
    return pixels.astype(np.uint8)


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1], validate=True))).convert("RGB"))


def section(page: str, name: str) -> str:
    return re.search(f'<section id="{name}">.*?</section>', page, re.DOTALL).group()


def test_the_page_shows_every_step(photo):
    page = render("disc.png", photo, count=60)
    assert "<h1>disc.png</h1>" in page and "90 × 60" in page
    assert section(page, "contours").count("<img") == 2
    captions = re.findall(r"<figcaption>(\d+) regions", section(page, "hierarchy"))
    assert captions == sorted(captions, key=int, reverse=True) and captions[-3:] == ["50", "20", "8"]
    shown = re.findall(r"<b>(\d+)</b> · ([\d.]+)", section(page, "regions"))
    assert [int(rank) for rank, _ in shown] == list(range(1, 51))
    objectness = [float(value) for _, value in shown]
    assert objectness == sorted(objectness, reverse=True)
    assert all(decode(uri).size for uri in re.findall(r'src="([^"]+)"', page))


def test_the_page_shows_the_boundaries_of_a_backbone(photo):
    boundary = Boundary(np.full(photo.shape[:2], 0.5, np.float32), "vgg16")
    page = section(render("a", photo, boundary, 5), "contours")
    assert page.count("<img") == 3 and "boundary probability of the backbone" in page


def test_the_page_asks_for_nothing_and_escapes_names(photo):
    page = render(HOSTILE, photo, count=3)
    page.encode("utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert set(re.findall(r'(?:src|href)="([^:]*:)', page)) == {"data:"}
    assert "default-src 'none'" in page and "@import" not in page and "http:" not in page and "https:" not in page


def test_a_plain_photo_has_one_region():
    page = render("plain", np.full((40, 50, 3), 70, np.uint8))
    assert section(page, "contours").count("<img") == 1
    assert "The photo is plain" in section(page, "hierarchy")
    assert section(page, "regions").count("<img") == 1


def test_the_smallest_photo_passes():
    rng = np.random.default_rng(1)
    assert "8 × 8" in render("small", rng.integers(0, 256, (8, 8, 3), np.uint8))


def test_borders_carry_their_arc_on_both_sides():
    superpixels = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 2, 2]])
    ends = np.array([0, 0, 1]), np.array([1, 2, 2])
    parts = Partition(superpixels, np.array([8, 4, 4]), None, ends, None, None)
    drawn = border_map(parts, np.array([0.2, 0.4, 0.9]))
    assert drawn.tolist() == [[0, 0.2, 0.2, 0], [0, 0.2, 0.9, 0.9], [0, 0.4, 0.9, 0.9], [0, 0.4, 0.4, 0]]


def test_a_level_undoes_the_last_merges():
    tree = hg.Tree(np.array([4, 4, 5, 6, 5, 6, 6]))  # 0 and 1 merge, then 2 joins, then 3
    groups = [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 0, 1], [0, 1, 2, 3]]
    for count, expected in enumerate(groups, start=1):
        found = level(tree, count)
        assert len(set(found)) == count
        assert ((found[:, None] == found) == (np.array(expected)[:, None] == expected)).all()


def test_regions_take_their_mean_colour():
    pixels = np.array([[[0, 10, 20], [4, 10, 40], [255, 0, 1]]], np.uint8)
    assert mean_colours(pixels, np.array([[0, 0, 1]])).tolist() == [[[2, 10, 30], [2, 10, 30], [255, 0, 1]]]


def test_heat_runs_from_black_to_pale_yellow():
    black, pale = decode(heat_uri(np.array([[0.0, 1.0]])))[0]
    assert black.tolist() == [0, 0, 4] and np.abs(pale.astype(int) - [252, 255, 164]).max() < 8


def test_a_region_is_bright_and_the_rest_dimmed():
    mask = np.zeros((300, 600), bool)
    mask[:, :300] = True
    bright, dimmed = (
        decode(uri) for uri in region_pictures(np.full((300, 600, 3), 200, np.uint8), from_masks([mask, ~mask]))
    )
    assert bright.shape == (112, 224, 3)
    for left, picture in ((200, bright), (60, dimmed)):
        assert np.abs(picture[:, :90].astype(int) - left).max() < 6
        assert np.abs(picture[:, 134:].astype(int) - (260 - left)).max() < 6


def test_a_photo_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no photo")
    for name, why in (("none.jpg", "cannot be read"), ("text.jpg", "no image"), (".", "cannot be read")):
        with pytest.raises(DatasetError, match=why) as caught:
            write(tmp_path / name, tmp_path / "page.html")
        assert str(tmp_path / name) in str(caught.value)
    assert not (tmp_path / "page.html").exists()
