"""The floor of scoring, which docs/results/speed.md compares with: multiply-adds and bytes of every layer."""

from benchmarks.scoring import Layer, Machine, floor, layers
from wsseg_ray.hcp.network import HypothesisNetwork


def network(pooling: str) -> HypothesisNetwork:
    """Conv layers 3-24, pool, 24-48, pool, 48-96, 96-96, 96-96; 128 hidden, 3x3 cells, crops of 96 px."""
    return HypothesisNetwork("small", 2, pooling).eval()


def multiply_adds(pooling: str) -> dict[str, list[int]]:
    """On a photo of 9x16 px, whose map is 2x4, with 5 proposals."""
    return {step: [layer.multiply_adds for layer in of] for step, of in layers(network(pooling), 9, 16, 5).items()}


def test_multiply_adds_of_segments():
    assert multiply_adds("segment") == {
        "trunk": [9 * 16 * 3 * 24 * 9, 4 * 8 * 24 * 48 * 9, 8 * 48 * 96 * 9, 8 * 96 * 96 * 9, 8 * 96 * 96 * 9],
        "pooling": [0],
        "fc": [5 * 96 * 128, 5 * 128 * 128, 5 * 128 * 2],
    }


def test_multiply_adds_of_boxes():
    found = multiply_adds("roi")
    assert found["trunk"] == multiply_adds("segment")["trunk"]
    assert found["pooling"] == [5 * 96 * 9 * 4 * 4]  # cells, 2x2 samples, 4 neighbours
    assert found["fc"] == [5 * 96 * 9 * 128, 5 * 128 * 128, 5 * 128 * 2]


def test_context_pools_twice():
    own = network("context")
    found = layers(own, 9, 16, 5)
    assert [of.numbers for of in found["pooling"]] == [8 * 96 + 5 * 2 * 96]
    assert found["fc"][0].multiply_adds == 5 * 2 * 96 * 128


def test_multiply_adds_of_crops():
    found = multiply_adds("warp")
    sides = [96, 48, 24, 24, 24]
    channels = [3, 24, 48, 96, 96, 96]
    assert found["trunk"] == [5 * sides[i] ** 2 * channels[i] * channels[i + 1] * 9 for i in range(5)]
    assert found["pooling"] == [5 * 3 * 96**2 * 4, 0]
    assert found["fc"] == multiply_adds("roi")["fc"]


def test_numbers_read_and_written():
    found = layers(network("segment"), 9, 16, 5)
    assert found["trunk"][1].numbers == 24 * 48 * 9 + 32 * (24 + 48)
    assert found["pooling"][0].numbers == 8 * 96 + 5 * 96
    assert found["fc"][2].numbers == 128 * 2 + 5 * (128 + 2)


def test_the_floor_is_arithmetic_or_memory_of_each_layer():
    steps = {"trunk": [Layer(100, 1), Layer(10, 50)], "pooling": [Layer(0, 3)]}
    assert floor(steps, Machine(multiply_adds=10, bytes=4), 2) == {"trunk": 10 + 25, "pooling": 1.5}
