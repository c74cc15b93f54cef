"""The heads for any backbone: `linear`, `mlp`, `aspp` and `decoder`."""

import pytest
import torch

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.hcp.dropout import number_photos
from wsseg_ray.segmentation.heads import HEADS
from wsseg_ray.segmentation.network import SegmentationNetwork

VARIANT = BACKBONES.get("timm:test_efficientnet")
CHANNELS = {"low": 6, "out": 10}


def built(name: str):
    torch.manual_seed(0)
    return HEADS.get(name).build(VARIANT, CHANNELS, 4).eval()


def maps(rows: int = 5, columns: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"low": torch.randn(2, 6, 2 * rows, 2 * columns), "out": torch.randn(2, 10, rows, columns)}


@pytest.mark.parametrize("name", ["linear", "mlp", "aspp", "decoder"])
def test_logits_lie_on_the_heads_grid(name):
    shape = (10, 14) if name == "decoder" else (5, 7)
    assert built(name)(maps()).shape == (2, 4, *shape)
    assert HEADS.get(name).grid == ("low" if name == "decoder" else "out")


def test_a_linear_head_is_a_product():
    head, levels = built("linear"), maps()
    weight, bias = head.classifier.weight[:, :, 0, 0], head.classifier.bias
    expected = torch.einsum("kc,bchw->bkhw", weight, levels["out"]) + bias[None, :, None, None]
    torch.testing.assert_close(head(levels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "reach"), [("linear", 0), ("mlp", 0)])
def test_cells_are_seen_alone(name, reach):
    head, levels = built(name), maps()
    moved = {**levels, "out": levels["out"].clone()}
    moved["out"][:, :, 2, 3] += 1
    changed = (head(levels) - head(moved)).abs().amax(dim=(0, 1)) > 1e-6
    assert changed.nonzero().tolist() == [[2, 3]]


def test_aspp_sees_near_far_and_the_photo():
    head = built("aspp")
    assert [layer.dilation[0] for layer in head.surroundings.around] == [1, 3, 6]  # 96 pixels at most, at stride 16
    levels = maps(9, 9)
    moved = {**levels, "out": levels["out"].clone()}
    moved["out"][:, :, 0, 0] += 1
    assert ((head(levels) - head(moved)).abs().amax(dim=(0, 1)) > 1e-7).all()  # through the photo's mean


@pytest.mark.parametrize("name", ["mlp", "aspp", "decoder"])
def test_dropout_belongs_to_the_photo(name):
    head, levels = built(name).train(), maps()
    number_photos(head, [5, 6])
    together = head(levels)
    number_photos(head, [6])
    alone = head({level: own[1:] for level, own in levels.items()})
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_a_head_needs_its_levels():
    with pytest.raises(ValueError, match="needs the level 'low' of a backbone, and 'timm:test_vit' has 'out'"):
        SegmentationNetwork("timm:test_vit", "decoder", 3)


def test_a_network_draws_at_half_the_stride_with_the_decoder():
    network = SegmentationNetwork("timm:test_efficientnet", "decoder", 3).eval()
    assert network.stride == 8 and not network.centred
    with torch.no_grad():
        assert network(torch.randn(1, 3, 100, 64)).shape == (1, 3, 12, 8)
