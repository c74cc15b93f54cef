import torch
from torchvision.models.segmentation.lraspp import LRASPPHead

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.segmentation.heads.lraspp import LRASPP


def test_it_is_torchvisions_head_on_two_levels():
    torch.manual_seed(0)
    theirs = LRASPPHead(4, 6, 3, 128).eval()
    torch.manual_seed(0)
    ours = LRASPP.build(BACKBONES.get("small"), {"low": 4, "out": 6}, 3).eval()
    low, high = torch.rand(2, 4, 9, 13), torch.rand(2, 6, 5, 7)
    with torch.no_grad():
        logits = ours({"low": low, "out": high})
        assert torch.equal(logits, theirs({"low": low, "high": high}))
    assert logits.shape == (2, 3, 9, 13)


def test_batch_norm_keeps_its_statistics():
    head = LRASPP.build(BACKBONES.get("small"), {"low": 4, "out": 6}, 3).train()
    assert head.training and not head.classifier.cbr[1].training
