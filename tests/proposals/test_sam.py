"""SAM's masks as proposals: with networks that are written here, and in a slow test with MobileSAM's files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from wsseg_ray.errors import RecipeError
from wsseg_ray.proposals import sam
from wsseg_ray.proposals.regions import RegionProposals

MOBILE = Path(__file__).resolve().parents[2] / "../shared/weights/mobile_sam"


class Encoder:
    """Keeps what it is shown."""

    def get_inputs(self):
        return [SimpleNamespace(name="input")]

    def run(self, _, given):
        self.seen = given["input"]
        return [np.zeros((1, 256, 64, 64), np.float32)]


class Decoder:
    """Says that the left half of the square is the object for points in it, and a vague mask elsewhere."""

    def __init__(self):
        self.points = []

    def run(self, _, given):
        x, y = given["point_coords"][0, 0]
        assert given["point_labels"].tolist() == [[1, -1]] and given["has_mask_input"] == [0]
        self.points.append((float(x), float(y)))
        low = np.full((1, 1, 256, 256), -9, np.float32)
        low[..., :128] = 9 if x < 512 else 0.5
        return None, np.array([[0.9 if x < 512 else 0.95]], np.float32), low


def test_a_grid_of_points_and_each_mask_once():
    networks = sam.Sam(Encoder(), Decoder())
    photo = np.full((50, 100, 3), 255, np.uint8)
    masks, quality = sam.find_masks(networks, photo, 2)
    assert networks.decoder.points == [(256, 128), (768, 128), (256, 384), (768, 384)]
    assert masks.shape == (1, 50, 100) and quality.tolist() == [np.float32(0.9)], "vague masks are left out"
    assert masks[0, :, :50].all() and not masks[0, :, 50:].any()
    seen = networks.encoder.seen
    assert seen.shape == (1, 3, 1024, 1024) and (seen[..., 512:, :] == 0).all()
    np.testing.assert_allclose(seen[0, :, 0, 0], [(255 - m) / s for m, s in zip(sam.MEAN, sam.STD, strict=True)], 1e-5)


def test_superpixels_that_lie_in_a_mask_by_more_than_half():
    regions = RegionProposals(np.array([[0, 0, 1, 1, 1, 2]]), sparse.csr_array(np.eye(3, dtype=np.float32)))
    masks = np.array([[[1, 0, 1, 1, 0, 0]], [[0, 1, 0, 0, 1, 0]]], bool)
    assert sam.snapped(regions, masks).tolist() == [[False, True, False], [False, False, False]]
    every, objectness, is_mask = sam.joined(regions, np.array([0.5, 0.4, 0.3]), masks, np.array([0.9, 0.8]))
    assert every.membership.toarray().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert objectness.tolist() == [0.5, 0.4, 0.3, 0.9] and is_mask.tolist() == [0, 0, 0, 1]


def test_what_is_no_sam_is_told(monkeypatch):
    pytest.importorskip("onnxruntime")
    with pytest.raises(RecipeError, match=r"proposals\.sam: a file is no ONNX network"):
        sam.load(b"", b"")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(RecipeError, match=r"pip install 'wsseg_ray\[sam\]'"):
        sam.load(b"", b"")


@pytest.mark.slow
def test_mobile_sam_finds_a_square():
    pytest.importorskip("onnxruntime")
    files = [Path(f"{MOBILE}{name}") for name in sam.FILES]
    if not files[0].exists():
        pytest.skip(f"{MOBILE}_encoder.onnx is not there")
    photo = np.full((200, 300, 3), 60, np.uint8)
    photo[60:140, 100:200] = (220, 60, 40)
    masks, quality = sam.find_masks(sam.load(*(file.read_bytes() for file in files)), photo, 3)
    square = np.zeros((200, 300), bool)
    square[60:140, 100:200] = True
    overlap = [(mask & square).sum() / (mask | square).sum() for mask in masks]
    assert max(overlap) > 0.95 and (quality <= 1).all()
