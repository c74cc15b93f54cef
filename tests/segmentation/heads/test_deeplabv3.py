import torch
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.segmentation.heads.deeplabv3 import DEEPLABV3


def test_it_is_torchvisions_head_on_the_last_level():
    torch.manual_seed(0)
    theirs = DeepLabHead(6, 3).eval()
    torch.manual_seed(0)
    ours = DEEPLABV3.build(BACKBONES.get("small"), {"out": 6}, 3).eval()
    maps = torch.rand(2, 6, 5, 7)
    with torch.no_grad():
        assert torch.equal(ours({"out": maps}), theirs(maps))
    assert list(ours.state_dict()) == [f"classifier.{name}" for name in theirs.state_dict()]
