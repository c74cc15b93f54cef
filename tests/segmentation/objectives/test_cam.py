import math

import torch

from wsseg_ray.segmentation.objectives.cam import activation_probabilities, cam_loss


def test_loss_by_hand():
    logits = torch.zeros(1, 3, 1, 2)
    logits[0, 1] = torch.tensor([[0.0, 2 * math.log(3)]])  # its mean is log 3: a probability of 3/4
    loss = cam_loss(logits, torch.tensor([[True, True, False]]))
    assert abs(loss.item() - (math.log(4 / 3) + math.log(2)) / 2) < 1e-6
    logits[:, 0] = 100  # the background plays no part
    assert torch.equal(cam_loss(logits, torch.tensor([[True, True, False]])), loss)


def test_gradients():
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[True, True, False], [True, False, True]])
    assert torch.autograd.gradcheck(lambda x: cam_loss(x, present), logits)


def test_a_class_is_where_its_map_passes_a_share_of_its_maximum():
    maps = torch.tensor([[[9.0, 9, 9, 9]], [[10.0, 1.9, 2.1, -5]], [[99.0, 99, 99, 99]]])
    found = activation_probabilities(maps, [1])
    assert found.argmax(dim=0).tolist() == [[1, 0, 1, 0]]
    assert not found[2].any()
    torch.testing.assert_close(found.sum(dim=0), torch.ones(1, 4))


def test_without_any_activation_all_is_background():
    found = activation_probabilities(-torch.ones(3, 2, 2), [1, 2])
    assert (found[0] == 1).all()
