import torch

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.proposals.boundaries.vgg16 import side_outputs


def test_side_outputs_are_those_of_all_conv_layers():
    trunk = BACKBONES.get("vgg16").build(False).eval()
    with torch.inference_mode():
        photo = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        outputs = side_outputs(trunk, photo)
        last = trunk(photo)["out"]
    channels = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    sides = [32] * 2 + [16] * 2 + [8] * 3 + [4] * 3 + [2] * 3
    assert [tuple(x.shape) for x in outputs] == [(1, c, s, s) for c, s in zip(channels, sides, strict=True)]
    assert all((x >= 0).all() for x in outputs)
    torch.testing.assert_close(outputs[-1], last)
