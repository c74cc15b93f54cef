"""The registries of networks' parts: light to import, files named like variants, and variants of the user's own."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from tests.hcp.reference import pool_photo
from wsseg_ray.backbones import BACKBONES
from wsseg_ray.hcp import LOSSES
from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.hcp.pooling import POOLINGS
from wsseg_ray.hcp.scoring import pool_photos, score_proposals
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.segmentation.grid import grid_size
from wsseg_ray.segmentation.heads import HEADS
from wsseg_ray.segmentation.network import SegmentationNetwork

LIGHT = """
import sys
import {module}
assert "torch" not in sys.modules, "importing {module} imports torch"
{then}
assert "torch" not in sys.modules, "{then} imports torch"
"""


@pytest.mark.parametrize(
    ("module", "then"),
    [
        ("wsseg_ray.backbones", "assert wsseg_ray.backbones.BACKBONES.get('vgg16').stride == 16"),
        ("wsseg_ray.backbones", "assert wsseg_ray.backbones.BACKBONES.get('torchvision:resnet50').dense_stride == 8"),
        ("wsseg_ray.hcp", "assert wsseg_ray.hcp.LOSSES.check('squared')"),
        ("wsseg_ray.hcp.pooling", "assert wsseg_ray.hcp.pooling.POOLINGS.check('roi')"),
        ("wsseg_ray.segmentation.heads", "assert wsseg_ray.segmentation.heads.HEADS.get('lraspp').grid == 'low'"),
        ("wsseg_ray.segmentation.grid", "assert wsseg_ray.segmentation.grid.grid_size('vgg16', 'fcn', 321) == 41"),
    ],
)
def test_what_is_known_before_a_network_is_built_imports_no_torch(module, then):
    subprocess.run([sys.executable, "-c", LIGHT.format(module=module, then=then)], check=True)


@pytest.mark.parametrize("name", ["small", "vgg16", "timm:resnet18", "timm:tf_efficientnet_lite0*1,1.5"])
def test_the_size_of_a_map_is_known_before_the_photo_is_seen(name):
    """On tensors without numbers, that only have a size."""
    variant = BACKBONES.get(name)
    assert variant.region_cells is not None
    with torch.device("meta"):
        backbone = variant.build(False).eval()
        for height, width in [(400, 267), (375, 500), (33, 1000), (64, 64), (2000, 1500)]:
            maps = backbone(torch.empty(1, 3, height, width))["out"]
            assert tuple(maps.shape[2:]) == variant.region_cells(height, width)


SHARED = {
    "base",
    "vgg",
    "weights",
    "photos",
    "precision",
    "named",
    "torchvision_layers",
    "timm_layers",
    "boxes",
    "layers",
    "masked",
    "sums",
}


@pytest.mark.parametrize(
    ("package", "registry"),
    [
        ("wsseg_ray.backbones", BACKBONES),
        ("wsseg_ray.hcp.pooling", POOLINGS),
        ("wsseg_ray.segmentation.heads", HEADS),
    ],
)
def test_each_variant_has_a_file_of_its_name(package, registry):
    folder = Path(importlib.import_module(package).__file__).parent
    files = {file.stem for file in folder.glob("*.py")} - {"__init__"} - SHARED
    assert {name.removesuffix(":") for name in registry.names} == files
    for name in registry.names:
        if not name.endswith(":"):
            assert getattr(registry.get(name), "name", name) == name


OWN = """
import torch
from torch import nn

from wsseg_ray.backbones import Backbone
from wsseg_ray.backbones.base import BaseBackbone
from wsseg_ray.hcp.pooling import MapPooling


class Stripes(BaseBackbone):
    channels = {"fine": 4, "out": 6}

    def __init__(self, dense):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1 if dense else 0)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, photos):
        fine = self.first(photos)
        return {"fine": fine, "out": self.second(fine)}


STRIPES = Backbone("stripes", Stripes, stride=4, dense_strides={"fine": 2, "out": 4}, hidden=8, dense_hidden=8)


def mean_and_max(feature_map, regions):
    h, w = feature_map.shape[1:]
    rows = (torch.arange(h) * regions.superpixels.shape[0]) // h
    columns = (torch.arange(w) * regions.superpixels.shape[1]) // w
    pooled = []
    for n in range(len(regions)):
        inside = torch.from_numpy(regions.mask(n))[rows[:, None], columns]
        values = feature_map[:, inside]
        pooled.append(torch.cat([values.mean(dim=1), values.amax(dim=1)]))
    return torch.stack(pooled)


MEAN_AND_MAX = MapPooling(mean_and_max, cells=2)
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    """The name of a module of the user's own."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_backbone_and_a_pooling_of_the_users_own(own):
    torch.manual_seed(0)
    network = HypothesisNetwork(f"{own}:STRIPES", 3, f"{own}:MEAN_AND_MAX").eval()
    assert network.head.fc6.in_features == 12 and network.stride == 4 and network.embedding_dims == 8
    superpixels = np.arange(4).reshape(2, 2).repeat(16, axis=0).repeat(12, axis=1)
    regions = RegionProposals(superpixels, sparse.csr_array(np.array([[1, 1, 1, 1], [1, 0, 0, 0]], np.float32)))
    photo = torch.rand(3, 32, 24)
    scores, embedding = score_proposals(network, photo, regions, LOSSES.get("squared"))
    assert scores.shape == (2, 3) and embedding.shape == (2, 8)
    with torch.no_grad():
        (pooled,) = pool_photos(network, [photo], [regions])
        whole = pool_photo(network, photo)
    maps = network.features(photo[None])[0].detach()
    torch.testing.assert_close(whole[0], torch.cat([maps.mean(dim=(1, 2)), maps.amax(dim=(1, 2))]))
    torch.testing.assert_close(whole[0], pooled[0])
    fc = torch.zeros(8, 6 * 49), torch.zeros(8), torch.zeros(8, 8), torch.zeros(8)
    assert network.convert_fc(*fc) == {}


def test_a_backbone_of_the_users_own_gets_a_segmentation_head(own):
    network = SegmentationNetwork(f"{own}:STRIPES", "largefov", 3).eval()
    assert network.stride == 4 and list(network.features(torch.rand(1, 3, 33, 33))) == ["out"]
    assert network(torch.rand(1, 3, 33, 33)).shape == (1, 3, 9, 9)
    assert grid_size(f"{own}:STRIPES", "largefov", 33) == 9
    with pytest.raises(ValueError, match=r"'lraspp' needs the level 'low'.*has 'fine', 'out'"):
        SegmentationNetwork(f"{own}:STRIPES", "lraspp", 3)
    network.freeze("all")
    assert not any(parameter.requires_grad for parameter in network.backbone.parameters())
    with pytest.raises(ValueError, match="none or all"):
        network.freeze(1)
