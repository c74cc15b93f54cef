import numpy as np
import torch
from torch.nn import functional

from tests.hcp.reference import pool_photo
from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.hcp.pooling import warp
from wsseg_ray.hcp.pooling.warp import warp_crops
from wsseg_ray.hcp.scoring import score_proposals


def test_warp_of_the_whole_photo_is_bilinear_resizing():
    photo = torch.rand(3, 7, 11, generator=torch.Generator().manual_seed(0))
    crop = warp_crops(photo, np.array([[0, 0, 11, 7]]), 5)
    expected = functional.interpolate(photo[None], (5, 5), mode="bilinear", align_corners=False)
    assert torch.allclose(crop, expected, atol=1e-6)


def test_warp_takes_the_boxes_own_pixels():
    photo = torch.arange(20.0).reshape(1, 4, 5).expand(3, 4, 5)
    crops = warp_crops(photo, np.array([[1, 2, 3, 4], [0, 0, 2, 2]]), 2)
    assert crops.shape == (2, 3, 2, 2)
    assert crops[:, 0].tolist() == [[[11, 12], [16, 17]], [[0, 1], [5, 6]]]
    assert warp_crops(photo, np.empty((0, 4), np.int64), 2).shape == (0, 3, 2, 2)


def test_the_whole_photo_is_maxima_in_a_grid(monkeypatch):
    network = HypothesisNetwork("small", 2, "warp")
    maps = torch.zeros(1, 96, 6, 6)
    maps[0, 0, 0, 0] = 4.0
    monkeypatch.setattr(network, "features", lambda crops: maps if crops.shape == (1, 3, 96, 96) else None)
    assert pool_photo(network, torch.rand(3, 50, 43))[0, 0, 0].tolist() == [4, 0, 0]


def test_proposals_do_not_depend_on_their_chunk(regions, squared, monkeypatch):
    network = HypothesisNetwork("small", 2, "warp").eval()
    photo = torch.randn(3, 40, 48)
    together = score_proposals(network, photo, regions, squared)[0]
    monkeypatch.setattr(warp, "CHUNK", 1)
    np.testing.assert_allclose(score_proposals(network, photo, regions, squared)[0], together, rtol=1e-5)


def test_crops_of_the_whole_photo_are_a_region_like_any_other(regions):
    torch.manual_seed(0)
    network = HypothesisNetwork("small", 2, "warp").eval()
    photo = torch.randn(3, 40, 48)
    with torch.no_grad():
        first = next(warp.WARP.chunks(network, photo, regions.top(1)))
    assert torch.equal(first, pool_photo(network, photo)) and first.shape == (1, 96, 3, 3)
