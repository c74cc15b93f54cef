import io

import pytest
import torch

from wsseg_ray.errors import WeightsError
from wsseg_ray.hcp.network import HypothesisNetwork, parameter_groups
from wsseg_ray.hcp.trunk import freeze, load_weights


@pytest.mark.parametrize(
    ("pooling", "pooled", "parameters"),
    # roi and warp: torchvision's VGG-16 with 20 classes for 1000; segment: fc6 without its 7x7 grid
    [
        ("segment", (2, 512), 134342484 - 48 * 512 * 4096),
        ("roi", (2, 512, 7, 7), 134342484),
        ("warp", (2, 512, 7, 7), 134342484),
    ],
)
def test_vgg16_shapes(pooling, pooled, parameters):
    with torch.device("meta"):
        network = HypothesisNetwork("vgg16", classes=20, pooling=pooling)
        maps = network.features(torch.empty(2, 3, 224, 224))
    assert maps.shape == (2, 512, 14, 14) and 224 // network.stride == 14
    assert network.pool_whole(maps).shape == pooled
    embedding = network.eval().embed(network.pool_whole(maps))
    assert embedding.shape == (2, network.embedding_dims) == (2, 4096)
    assert network.classify(embedding).shape == (2, 20)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("pooling", "pooled"),
    [("segment", (2, 96)), ("context", (2, 192)), ("roi", (2, 96, 3, 3)), ("warp", (2, 96, 3, 3))],
)
def test_small_shapes(pooling, pooled):
    network = HypothesisNetwork("small", classes=5, pooling=pooling).eval()
    maps = network.features(torch.rand(2, 3, 50, 43))
    assert maps.shape == (2, 96, 12, 10)
    assert network.pool_whole(maps).shape == pooled
    embedding = network.embed(network.pool_whole(maps))
    assert embedding.shape == (2, network.embedding_dims) == (2, 128)
    assert (embedding >= 0).all() and torch.equal(embedding, network.embed(network.pool_whole(maps)))
    assert network.classify(embedding).shape == (2, 5)


def test_pool_whole():
    maps = torch.zeros(1, 96, 6, 6)
    maps[0, 0, 0, 0] = 4.0
    pooled = {pooling: HypothesisNetwork("small", 2, pooling).pool_whole(maps) for pooling in ("warp", "roi")}
    assert pooled["warp"][0, 0, 0].tolist() == [4, 0, 0] and pooled["roi"][0, 0, 0].tolist() == [1, 0, 0]
    assert HypothesisNetwork("small", 2, "segment").pool_whole(maps)[0, :2].tolist() == [pytest.approx(4 / 36), 0]
    context = HypothesisNetwork("small", 2, "context").pool_whole(maps)[0]
    assert context[0] == pytest.approx(4 / 36) and not context[1:].any()


def test_folded_fc6_answers_as_the_whole_one_on_a_constant_grid():
    with torch.device("meta"):
        network = HypothesisNetwork("vgg16", classes=2, pooling="segment")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 512 * 7 * 7, generator=generator, dtype=torch.float64)
    segment = torch.rand(3, 512, generator=generator, dtype=torch.float64)
    folded = network.convert_fc(weight, torch.zeros(5), torch.zeros(5, 5), torch.zeros(5))["fc6.weight"]
    grid = segment[:, :, None, None].expand(3, 512, 7, 7)
    assert torch.allclose(segment @ folded.T, grid.flatten(1) @ weight.T)
    with torch.device("meta"):
        network = HypothesisNetwork("vgg16", classes=2, pooling="context")
    doubled = network.convert_fc(weight, torch.zeros(5), torch.zeros(5, 5), torch.zeros(5))["fc6.weight"]
    assert doubled.shape == (5, 1024)
    assert torch.allclose(torch.cat([segment, segment], dim=1) @ doubled.T, segment @ folded.T)


@pytest.fixture(scope="module")
def vgg16() -> HypothesisNetwork:
    with torch.device("meta"):
        network = HypothesisNetwork("vgg16", classes=2, pooling="segment")
    return network.to_empty(device="cpu")


def full_state(vgg16, fc7: tuple[int, int]) -> bytes:
    """A full VGG-16 file, small on disk: every tensor is one number, expanded."""
    half = torch.full((1,), 0.5, dtype=torch.float16)
    state = {name: half.expand(tensor.shape) for name, tensor in vgg16.trunk.state_dict(prefix="features.").items()}
    shapes = {"0.weight": (4096, 25088), "0.bias": (4096,), "3.weight": fc7, "3.bias": (4096,), "6.bias": (1000,)}
    state |= {f"classifier.{name}": torch.ones(1).expand(shape) for name, shape in shapes.items()}
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_a_full_vgg16_file_fills_all_but_the_last_layer(vgg16):
    loaded, missing = load_weights(vgg16, full_state(vgg16, fc7=(4096, 4096)))
    assert missing == ["classifier.weight", "classifier.bias"]
    assert len(loaded) == 26 + 4
    assert (vgg16.trunk[28].weight == 0.5).all() and (vgg16.fc6.weight == 49).all() and (vgg16.fc7.weight == 1).all()


def test_refuses_a_wrong_fc7(vgg16):
    with pytest.raises(WeightsError, match=r"classifier.3.weight has shape \(4096, 1000\)"):
        load_weights(vgg16, full_state(vgg16, fc7=(4096, 1000)), name="file")


def test_parameter_groups():
    network = HypothesisNetwork("small", classes=2, pooling="segment")
    freeze(network.trunk, 4)
    slow, fast = parameter_groups(network, 0.1, 0.3, ["fc7.weight"])
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    trunk = [f"trunk.{layer}.{kind}" for layer in (14, 15) for kind in ("weight", "bias")]
    assert [names[id(p)] for p in slow["params"]] == [*trunk, "fc6.weight", "fc6.bias", "fc7.bias"]
    assert [names[id(p)] for p in fast["params"]] == ["fc7.weight", "classifier.weight", "classifier.bias"]
    assert (slow["lr"], fast["lr"]) == (0.1, 0.3)
    torch.optim.SGD([slow, fast], momentum=0.9)
