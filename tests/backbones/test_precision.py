import torch

from wsseg_ray.backbones.precision import full_precision, mixed_precision


def test_on_a_cpu_nothing_is_rounded():
    device = torch.device("cpu")
    with mixed_precision(device):
        assert not torch.is_autocast_enabled("cpu")
    a = torch.full((2, 2), 1 / 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(device):
            assert (a @ a).dtype == torch.float32
