import pytest
import torch
from torch import nn

from wsseg_ray.segmentation.deeplab import DeepLabLargeFOV, upsample
from wsseg_ray.segmentation.inference import HALO, TILE, photo_logits, tiled_logits


@pytest.fixture(scope="module")
def small() -> DeepLabLargeFOV:
    torch.manual_seed(0)
    return DeepLabLargeFOV("deeplab_small", 3).eval()


def test_one_scale_is_the_network(small):
    photo = torch.rand(1, 3, 40, 57)
    with torch.no_grad():
        assert torch.equal(photo_logits(small, photo), small(photo)[0])


def test_scales_and_mirror_are_averaged(small):
    photo = torch.rand(1, 3, 41, 57)
    with torch.no_grad():
        double = small(nn.functional.interpolate(photo, (82, 114), mode="bilinear"))
        expected = (double + upsample(small(photo), *double.shape[2:]))[0] / 2
        torch.testing.assert_close(photo_logits(small, photo, [1, 2]), expected)
        mirrored = (small(photo) + small(photo.flip(3)).flip(3))[0] / 2
        torch.testing.assert_close(photo_logits(small, photo, mirror=True), mirrored)


def test_a_mirrored_photo_gets_mirrored_logits(small):
    photo = torch.rand(1, 3, 33, 65)
    answer = photo_logits(small, photo, mirror=True)
    torch.testing.assert_close(photo_logits(small, photo.flip(3), mirror=True).flip(2), answer)


@pytest.mark.parametrize("size", [(96, 96), (97, 64), (61, 130), (193, 99), (5, 65)])
def test_tiles_are_the_whole(small, size):
    photo = torch.rand(1, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(tiled_logits(small, photo, tile=32, halo=40), small(photo), rtol=1e-4, atol=1e-5)


def test_the_halo_covers_what_a_cell_of_largefov_sees():
    """The gradient of a cell reaches no farther than the halo."""
    network = DeepLabLargeFOV("deeplab_largefov", 2).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1e-3)
    photo = torch.rand(1, 3, 1, 481, requires_grad=True)
    network(photo)[0, 1, 0, 30].backward()  # looks around pixel 240
    seen = photo.grad[0].abs().sum(dim=(0, 1)).nonzero()[:, 0]
    assert 240 - HALO <= int(seen.min()) < 100 and 380 < int(seen.max()) <= 240 + HALO
    assert TILE % network.stride == HALO % network.stride == 0
