import numpy as np
import pytest
import torch

from wsseg_ray.backbones.photos import normalise, whole_cells


def test_normalise():
    photo = np.zeros((2, 3, 3), np.uint8)
    photo[1, 2] = (255, 128, 0)
    batch = normalise(photo)
    assert batch.shape == (1, 3, 2, 3) and batch.dtype == torch.float32
    assert torch.allclose(
        batch[0, :, 1, 2], torch.tensor([(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, -0.406 / 0.225])
    )
    assert torch.equal(normalise(np.stack([photo, photo])), torch.cat([batch, batch]))


def test_a_backbone_may_have_a_mean_and_deviation_of_its_own():
    photo = np.full((1, 1, 3), (255, 0, 51), np.uint8)
    found = normalise(photo, mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 0.1)).flatten()
    torch.testing.assert_close(found, torch.tensor([1.0, -2.0, 2.0]))


@pytest.mark.parametrize("photo", [np.zeros((2, 3, 3)), np.zeros((2, 3), np.uint8), np.zeros((2, 3, 4), np.uint8)])
def test_normalise_refuses(photo):
    with pytest.raises(ValueError, match="uint8"):
        normalise(photo)


@pytest.mark.parametrize(
    ("size", "stride", "whole"),
    [
        ((300, 400), 16, (304, 400)),
        ((301, 397), 14, (308, 392)),
        ((3, 5), 16, (16, 16)),
        ((6000, 8000), 16, (1248, 1680)),
    ],
)
def test_whole_cells_near_a_photos_size(size, stride, whole):
    assert whole_cells(*size, stride) == whole
