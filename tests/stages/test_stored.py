"""Stored features: how maps are kept in a row, which tables are read, and that they change no result."""

import numpy as np
import pytest
import torch

from wsseg_ray.recipe import load
from wsseg_ray.stages.stored import (
    Kept,
    hcp_reads,
    levels_stored,
    map_of,
    maps_of,
    packed,
    segmenters_read,
    views_stored,
)
from wsseg_ray.tables import FEATURES, SEGMENTER_FEATURES, FeatureRow, decode, encode

LITE = "timm:test_efficientnet"
FROZEN = [f"hcp.backbone={LITE}", f"segmentation.backbone={LITE}", "hcp.freeze=all", "segmentation.freeze=all"]


def test_maps_come_back_as_they_were():
    """Of two photos that pass together."""
    out, low = torch.arange(48.0).view(2, 2, 3, 4), torch.full((2, 1, 2, 2), 1e6)
    views = [(1.0, False, {"out": out, "low": low}), (1.0, True, {"out": out + 1}), (0.5, False, {"out": out[:, :1]})]
    rows, others = packed([views, [(1.0, False, {"out": out[:1, :, :2] - 3})]])
    assert torch.equal(map_of(others[0]), (out[0, :, :2] - 3).half())
    for place, read in enumerate(decode(FeatureRow, encode(FeatureRow, rows))):
        assert torch.equal(map_of(read), out[place].half())
        assert torch.equal(maps_of(read)["low"], torch.full((1, 2, 2), 65504).half())  # half precision's largest
        assert torch.equal(maps_of(read, (1.0, True))["out"], (out[place] + 1).half())
        assert maps_of(read, (0.5, False))["out"].shape == (1, 3, 4) and maps_of(read, (2.0, False)) is None


@pytest.mark.parametrize(
    ("settings", "hcp", "segmenters"),
    [
        (FROZEN, FEATURES, FEATURES),
        ([*FROZEN, "features.stored=false"], None, None),
        ([*FROZEN, "hcp.freeze=none"], None, SEGMENTER_FEATURES),
        ([*FROZEN, "segmentation.freeze=none"], FEATURES, None),
        ([*FROZEN, "segmentation.weights=random"], FEATURES, SEGMENTER_FEATURES),
        (
            [*FROZEN, "segmentation={backbone: 'timm:test_vit', freeze: all, weights: random}"],
            FEATURES,
            SEGMENTER_FEATURES,
        ),
        ([*FROZEN, "segmentation={backbone: small, freeze: all, weights: random}"], FEATURES, None),
        ([*FROZEN, "hcp.pooling=warp"], None, SEGMENTER_FEATURES),
        ([], None, None),
    ],
)
def test_which_features_are_read(settings, hcp, segmenters):
    recipe = load("demo", settings)
    assert (hcp_reads(recipe), segmenters_read(recipe)) == (hcp, segmenters)


def test_levels_and_views_that_are_stored():
    recipe = load("demo", [*FROZEN, "segmentation.head=decoder", "features={scales: [0.5, 1], mirror: true}"])
    assert levels_stored(recipe, FEATURES) == ["low", "out"]
    assert views_stored(recipe) == [(1.0, False), (1.0, True), (0.5, False), (0.5, True)]
    assert levels_stored(load("demo", FROZEN), FEATURES) == ["out"]


def test_what_is_kept_is_bounded_and_made_once():
    made = []

    def make(name):
        made.append(name)
        return np.zeros(100, np.uint8)

    kept = Kept[np.ndarray](150)
    for name in "abcabc":
        kept.get(name, lambda name=name: make(name))
    assert made == ["a", "b", "c", "c"]  # a and b fill it: beyond 150 bytes nothing more is kept


def test_rows_of_a_table_stay_finite():
    ((row,),) = packed([[(1.0, False, {"out": torch.tensor([[[[np.inf]], [[-np.inf]]]])})]])
    assert np.isfinite(row.maps).all()
