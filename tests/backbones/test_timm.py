"""timm's models as backbones: a CNN, plain ViTs, ViTs and CNNs with several strides, all tiny and at random."""

import pytest
import torch
from torch import nn

from wsseg_ray.backbones import BACKBONES
from wsseg_ray.backbones.timm_layers import fitted, has_patches, unit_mean_square
from wsseg_ray.backbones.weights import Bare, load_weights
from wsseg_ray.errors import WeightsError

CNN, PLAIN, HIERARCHICAL = "test_efficientnet", "test_vit", "pvt_v2_b0"
FAMILIES = [CNN, PLAIN, HIERARCHICAL, "test_convnext", "test_resnet", "swin_tiny_patch4_window7_224", f"{CNN}*1,1.5"]


def built(name: str):
    torch.manual_seed(0)
    variant = BACKBONES.get(f"timm:{name}")
    return variant, variant.build(False).eval()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(96, 80), (100, 97), (17, 60), (9, 8)])
def test_cells_cover_a_photo_of_any_size(name, size):
    variant = BACKBONES.get(f"timm:{name}")
    with torch.device("meta"):
        backbone = variant.build(False).eval()
        levels = backbone(torch.empty(2, 3, *size))
    cells = [max(1, round(side / variant.stride)) for side in size]
    assert levels["out"].shape == (2, backbone.channels["out"], *cells)
    assert levels.keys() == backbone.channels.keys() == variant.dense_strides.keys() and not variant.centred
    if "low" in levels:
        assert levels["low"].shape == (2, backbone.channels["low"], *(2 * side for side in cells))


class Pyramid(nn.Module):
    """A model as timm's, whose levels are plain means: of patches, or of pixels around a centre."""

    def __init__(self, patches: bool) -> None:
        super().__init__()
        first = nn.Conv2d(3, 4, 2, stride=2) if patches else nn.Conv2d(3, 4, 3, stride=2, padding=1)
        more = [nn.Conv2d(4, 4, 2, 2) if patches else nn.Conv2d(4, 4, 3, 2, padding=1) for _ in range(2)]
        self.layers = nn.ModuleList([first, *more])
        for layer in self.layers:
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
            nn.init.zeros_(layer.bias)

    def prune_intermediate_layers(self, indices, prune_norm):
        assert indices == [1, 2] and prune_norm

    def forward_intermediates(self, photos, indices, **options):
        maps = []
        for layer in self.layers:
            photos = layer(photos)
            maps.append(photos)
        return [maps[i] for i in indices]


@pytest.mark.parametrize("patches", [True, False])
def test_each_cell_looks_at_its_own_place(patches, monkeypatch):
    """The gradient of a cell of any level is centred on the cell's middle, within half a pixel."""
    from wsseg_ray.backbones import timm_layers
    from wsseg_ray.backbones.timm import Level, Levels

    monkeypatch.setattr(timm_layers, "unit_mean_square", lambda maps: maps)
    levels = Levels((Level(1, 4, 4), Level(2, 4, 8)), Level(0, 4, 2), is_plain=False)
    backbone = timm_layers.TimmBackbone(Pyramid(patches), levels)
    assert has_patches(backbone.model) == patches
    photo = torch.rand(1, 3, 40, 64, requires_grad=True)
    for level, stride in (("out", 4), ("low", 2)):
        found = backbone(photo)[level]
        assert found.shape[2:] == (40 // stride, 64 // stride)
        for channels in (slice(0, 4), slice(4, 8))[: found.shape[1] // 4]:
            row, column = 20 // stride, 32 // stride
            (gradient,) = torch.autograd.grad(found[0, channels, row, column].sum(), photo, retain_graph=True)
            weight = gradient.sum(dim=(0, 1))
            place = [
                float((weight.sum(dim=1 - axis) * torch.arange(weight.shape[axis])).sum() / weight.sum())
                for axis in (0, 1)
            ]
            wanted = [(cell + 0.5) * stride - 0.5 for cell in (row, column)]
            assert place == pytest.approx(wanted, abs=0.51 if channels.start == 0 else stride / 2 + 0.51)


def test_the_levels_of_a_network_are_joined_and_each_has_the_same_weight():
    variant, backbone = built(CNN)
    with torch.no_grad():
        joined = backbone(torch.randn(1, 3, 96, 96))["out"]
    assert variant.stride == 16 and joined.shape == (1, 48 + 64, 6, 6)
    assert joined[:, :48].square().mean(dim=1).sqrt().allclose(torch.ones(6, 6), atol=1e-4)
    assert joined[:, 48:].square().mean(dim=1).max() <= 1 + 1e-4  # between two cells it is less


def test_a_mean_square_of_one():
    maps = torch.tensor([3.0, 4.0, 0.0, 0.0]).view(1, 4, 1, 1)
    assert unit_mean_square(maps).flatten().tolist() == pytest.approx([1.2, 1.6, 0, 0])


def test_levels_can_be_named():
    assert BACKBONES.get(f"timm:{CNN}@-3,-2,-1").stride == 8
    assert built(f"{PLAIN}@1,3")[1].channels == {"out": 128}
    assert built(PLAIN)[1].channels == {"out": 64}


def test_scales_are_joined_in_the_cells_of_the_photo():
    from torch.nn import functional

    _, plain = built(CNN)
    _, joined = built(f"{CNN}*1,2")
    photo = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        both, small = joined(photo), plain(photo)
        large = plain(functional.interpolate(photo, (128, 192), mode="bilinear"))
    means = functional.avg_pool2d(large["out"], 2)  # half as large, bilinear: the mean of two by two cells
    torch.testing.assert_close(both["out"], torch.cat([small["out"], means], dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both["low"], small["low"])
    assert joined.channels == {"low": 32, "out": 2 * 112} and BACKBONES.get(f"timm:{CNN}@-1*0.5").stride == 32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{CNN}*1,big", r"timm:test_efficientnet\*1,big: scales are different numbers above 0 and up to 4"),
        (f"{CNN}*1,1", "scales are different numbers"),
        (f"{CNN}*0", "scales are different numbers"),
        ("no_such_model", "timm has no model 'no_such_model'"),
        (f"{CNN}@9", r"timm:test_efficientnet@9: levels are numbers from 0 to 4.*2, 4, 8, 16, 32"),
        (f"{CNN}@a", "levels are numbers"),
        ("hiera_tiny_224", "does not take photos of any size"),
    ],
)
def test_names_that_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        BACKBONES.get(f"timm:{name}")


def test_a_photo_of_whole_cells_is_not_touched():
    photos = torch.rand(1, 3, 32, 48)
    assert fitted(photos, 16) is photos
    assert fitted(torch.rand(1, 3, 41, 7), 16).shape == (1, 3, 48, 16)


def test_weights_of_timm_fit_by_name_and_nothing_may_lack(tmp_path):
    import safetensors.torch
    import timm

    torch.manual_seed(1)
    model = timm.create_model(CNN)
    state = model.state_dict()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    variant = BACKBONES.get(f"timm:{CNN}")
    for file in ("w.safetensors", "w.pth"):
        network = Bare(variant)
        loaded, fresh = load_weights(network, tmp_path / file)
        assert not fresh and len(loaded) == len(network.state_dict())
        assert torch.equal(network.backbone.model.conv_stem.weight, state["conv_stem.weight"])
    del state["conv_stem.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"lacks 1 of the backbone.s tensors .backbone\.model\.conv_stem\.weight"):
        load_weights(Bare(variant), tmp_path / "w.pth")


def test_a_frozen_backbone_never_changes_and_a_trained_one_keeps_its_statistics():
    _, backbone = built(CNN)
    backbone.freeze("all")
    backbone.train()
    assert not any(module.training for module in backbone.model.modules())
    backbone.freeze("none")
    backbone.train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert backbone.model.training and norms and not any(norm.training for norm in norms)


def test_photos_of_one_size_pass_together_as_each_would_alone():
    _, backbone = built(PLAIN)
    photos = torch.randn(3, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(backbone(photos)["out"][1:2], backbone(photos[1:2])["out"], rtol=1e-3, atol=1e-4)
