import numpy as np
import pytest
import torch

from wsseg_ray import recipe
from wsseg_ray.segmentation.inference import View
from wsseg_ray.segmentation.networks import NETWORKS, Network
from wsseg_ray.stages import labels
from wsseg_ray.stages.labels import bounded, segment


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)


def named(*names: str) -> list[Network]:
    return [NETWORKS.get(name) for name in names]


def views(seed: int, classes: int = 4) -> list[View]:
    logits = torch.randn(classes, 9, 12, generator=torch.Generator().manual_seed(seed))
    return [View(3 * logits, (30, 41), 4, False)]


@pytest.fixture
def seen(monkeypatch) -> list[dict]:
    """What the CRF is called with; it answers with the best class."""
    calls = []

    def crf(photo, probabilities, **settings):
        calls.append({"size": photo.shape[:2], "probabilities": probabilities, **settings})
        return probabilities.argmax(dim=-3).to(torch.uint8).numpy()

    monkeypatch.setattr(labels, "dense_crf", crf)
    return calls


@pytest.mark.parametrize(("max_side", "share"), [("null", 1), (500, 1), (1000, 1), (200, 0.4), (250, 0.5)])
def test_the_widths_of_the_crf_shrink_with_the_photo(photo, seen, max_side, share):
    """They are pixels of photos whose longer side is 500 px. Larger photos keep them."""
    settings = recipe.load("paper-voc12", [f"dataset.max_side={max_side}"])
    segment(settings, named("SN_B"), photo, [views(0)])
    assert seen[0]["bilateral_xy"] == pytest.approx(121 * share) and seen[0]["spatial_xy"] == pytest.approx(3 * share)
    assert seen[0]["bilateral_rgb"] == 5  # grey levels do not shrink


def test_the_widths_shrink_once_more_where_the_photo_is_too_large_for_the_crf(photo, seen, monkeypatch):
    monkeypatch.setattr(labels, "MAX_PIXELS", 320)
    (found,) = segment(recipe.load("paper-voc12"), named("SN_B"), photo, [views(0)])
    assert seen[0]["size"] == bounded(photo).shape[:2] == (15, 20) and [own.shape for own in found] == [(30, 41)] * 2
    assert seen[0]["bilateral_xy"] == pytest.approx(121 * 20 / 41)


@pytest.mark.parametrize("name", ["SN_B", "ILP", "ILP_SPPXL", "ILP_BB", "ILP_SEG"])
def test_the_crf_is_handed_a_distribution_over_classes(photo, seen, name):
    """The priors of MIL-ILP are products, which do not add up to 1 by themselves."""
    segment(recipe.load("demo"), named(name), photo, [views(0)])
    np.testing.assert_allclose(seen[0]["probabilities"].sum(dim=1), 1, atol=1e-5)


def test_networks_are_labelled_together_as_each_would_be_alone(photo, monkeypatch):
    settings, names = recipe.load("demo"), ["AN_A", "SN_B", "ILP_SEG"]
    own = [views(seed) for seed in range(3)]
    alone = [segment(settings, named(name), photo, [one])[0] for name, one in zip(names, own, strict=True)]
    for together in (labels.MAX_VALUES, 2 * 4 * 30 * 41, 1):  # all at once, two, one by one
        monkeypatch.setattr(labels, "MAX_VALUES", together)
        for found, expected in zip(segment(settings, named(*names), photo, own), alone, strict=True):
            assert len(found) == 2 and all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_only_present_classes_are_labelled(photo):
    (found,) = segment(recipe.load("demo"), named("SN_B"), photo, [views(1)], np.array([2]))
    assert all(set(np.unique(own)) <= {0, 2} for own in found)
