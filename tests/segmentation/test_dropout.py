import pytest
import torch
from torch import nn

from wsseg_ray.segmentation.deeplab import DeepLabLargeFOV
from wsseg_ray.segmentation.dropout import PhotoDropout, dropouts_by_photo, number_photos


def test_a_photo_keeps_its_mask_in_any_batch():
    layer = PhotoDropout(0.5).train()
    photos = torch.rand(3, 4, 5, 6) + 1
    layer.numbers = [7, 8, 2**62]
    together = layer(photos)
    layer.numbers = [2**62]
    assert torch.equal(layer(photos[2:]), together[2:])
    kept = together > 0
    assert torch.equal(together[kept], 2 * photos[kept])
    assert 0.35 < kept.float().mean() < 0.65 and not torch.equal(kept[0], kept[1])


def test_evaluation_and_no_numbers_are_as_ever():
    layer, x = PhotoDropout(0.5), torch.ones(2, 1000)
    assert 800 < int((layer.train()(x) > 0).sum()) < 1200
    layer.numbers = [1]
    assert torch.equal(layer.eval()(x), x)
    with pytest.raises(ValueError, match="2 photos need as many numbers, got 1"):
        layer.train()(x)


def test_gradients_of_parts_add_up_to_those_of_the_batch():
    """What two workers compute, each on its part, is what one computes; BatchNorm keeps its statistics."""
    torch.manual_seed(0)
    network = DeepLabLargeFOV("deeplab_small", 3)
    network.dropout6.p = network.dropout7.p = 0.5
    network.train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    photos, numbers = torch.rand(5, 3, 33, 33), [11, 22, 33, 44, 55]

    def gradients(parts: list[list[int]]) -> list[torch.Tensor]:
        network.zero_grad()
        for part in parts:
            number_photos(network, [numbers[i] for i in part])
            (network(photos[part]).square().mean() * len(part) / 5).backward()
        return [parameter.grad.clone() for parameter in network.parameters()]

    for one, two in zip(gradients([[0, 1, 2, 3, 4]]), gradients([[0, 2, 4], [1, 3]]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_layers_differ():
    network = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.3)))
    dropouts_by_photo(network)
    number_photos(network, [5])
    assert [type(layer) for layer in (network[0], network[1][0])] == [PhotoDropout] * 2
    assert (network[0].numbers, network[1][0].numbers, network[1][0].p) == ([5], [6], 0.3)


def test_a_compiled_network_drops_the_same():
    """The masks of a step are drawn anew, not compiled in; `eager` needs no compiler."""
    torch.manual_seed(0)
    network = DeepLabLargeFOV("deeplab_small", 3)
    network.dropout6.p = network.dropout7.p = 0.5
    network.eval()
    features = network.features(torch.rand(2, 3, 33, 33))
    network.dropout6.train(), network.dropout7.train()
    compiled = torch.compile(network.head, backend="eager")
    for numbers in ([1, 2], [3, 4]):
        number_photos(network, numbers)
        torch.testing.assert_close(compiled(features), network.head(features))
