import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from wsseg_ray.hcp.dropout import PhotoDropout, dropouts_by_photo, leave_uncompiled, mixed, number_photos
from wsseg_ray.segmentation.network import SegmentationNetwork


def test_a_photo_keeps_its_mask_in_any_batch():
    layer = PhotoDropout(0.5).train()
    photos = torch.rand(3, 4, 5, 6) + 1
    number_photos(layer, [7, 8, 2**62])
    together = layer(photos)
    number_photos(layer, [2**62])
    assert torch.equal(layer(photos[2:]), together[2:])
    kept = together > 0
    assert torch.equal(together[kept], 2 * photos[kept])
    assert 0.35 < kept.float().mean() < 0.65 and not torch.equal(kept[0], kept[1])


def test_evaluation_drops_nothing():
    x = torch.ones(2, 1000)
    assert torch.equal(PhotoDropout(0.5).eval()(x), x)
    assert torch.equal(PhotoDropout(0.0).train()(x), x)


def test_training_needs_numbers_for_each_pass():
    layer, x = PhotoDropout(0.5).train(), torch.ones(2, 1000)
    with pytest.raises(ValueError, match="call `number_photos` before each pass"):
        layer(x)
    number_photos(layer, [1, 2])
    assert 800 < int((layer(x) > 0).sum()) < 1200
    with pytest.raises(ValueError, match="call `number_photos` before each pass"):
        layer(x)  # the numbers are used up
    number_photos(layer, [1])
    with pytest.raises(ValueError, match="1 photos are numbered for 1 rows, the batch has 2"):
        layer(x)


def test_a_photo_of_several_rows_keeps_its_masks_in_any_batch():
    layer, rows = PhotoDropout(0.5).train(), torch.ones(5, 64)
    number_photos(layer, [mixed(1), mixed(2)], [3, 2])
    together = layer(rows)
    number_photos(layer, [mixed(2)], [2])
    assert torch.equal(layer(rows[:2]), together[3:])
    assert not torch.equal(together[3], together[4])  # each row of a photo has a mask of its own


def test_each_thread_has_its_own_photos():
    layer, rows, meeting = PhotoDropout(0.5).train(), torch.ones(1, 64), threading.Barrier(2, timeout=60)

    def dropped(number: int) -> torch.Tensor:
        number_photos(layer, [number])
        meeting.wait()  # the other thread has numbered its photo too
        return layer(rows)

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(dropped, [1, 2]))
    for number, found in zip([1, 2], together, strict=True):
        number_photos(layer, [number])
        assert torch.equal(layer(rows), found)
    assert not torch.equal(*together)


def test_photo_layer_and_epoch_do_not_add_up_to_the_same_number():
    """Sums do: photo 7 in epoch 1 would drop in its first layer what photo 8 drops in epoch 0, and in its second layer
    what it dropped in the first one an epoch later."""
    network = nn.Sequential(PhotoDropout(0.5), PhotoDropout(0.5))
    seen = set()
    for photo in range(20):
        for epoch in range(20):
            number_photos(network, [mixed(photo, epoch)])
            seen |= {tuple((layer(torch.ones(1, 200)) > 0)[0].tolist()) for layer in network}
    assert len(seen) == 20 * 20 * 2
    assert all(0 <= mixed(number) < 2**62 for number in range(100))
    assert mixed(1, 2) == mixed(1, 2) != mixed(2, 1)


def test_gradients_of_parts_add_up_to_those_of_the_batch():
    """What two workers compute, each on its part, is what one computes; BatchNorm keeps its statistics."""
    torch.manual_seed(0)
    network = SegmentationNetwork("small", "largefov", 3)
    network.head.dropout6.p = network.head.dropout7.p = 0.5
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
    assert network[1][0].p == 0.3
    network[1][0].p = 0.5
    first, second = (layer(torch.ones(1, 200)) for layer in (network[0], network[1][0]))
    assert not torch.equal(first, second)


def test_a_compiled_network_drops_the_same():
    """The masks of a step are drawn anew, not compiled in; `eager` needs no compiler."""
    torch.manual_seed(0)
    network = SegmentationNetwork("small", "largefov", 3)
    network.head.dropout6.p = network.head.dropout7.p = 0.5
    network.eval()
    features = network.features(torch.rand(2, 3, 33, 33))
    network.head.dropout6.train(), network.head.dropout7.train()
    leave_uncompiled(network)
    compiled = torch.compile(network.head, backend="eager")
    for numbers in ([1, 2], [3, 4]):
        answers = []
        for head in (compiled, network.head):
            number_photos(network, numbers)
            answers.append(head(features))
        torch.testing.assert_close(*answers)
