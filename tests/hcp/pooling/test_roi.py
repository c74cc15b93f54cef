import numpy as np
import torch

from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.hcp.pooling.roi import ROI, pool_boxes


def test_roi_cells_are_means_of_the_feature_cells_they_cover():
    features = torch.arange(64.0).reshape(1, 8, 8)  # linear, so the mean of 2x2 samples is the value at the centre
    pooled = pool_boxes(features, np.array([[32, 16, 96, 80]]), stride=16, grid=2)
    # the box covers feature cells 2..5 by 1..4; a quarter's centre lies between its four cells
    assert pooled[0, 0].tolist() == [[8 * 1.5 + 2.5, 8 * 1.5 + 4.5], [8 * 3.5 + 2.5, 8 * 3.5 + 4.5]]
    assert pool_boxes(features, np.empty((0, 4), np.int64), 16, 2).shape == (0, 1, 2, 2)


def test_the_whole_photo_is_means_in_a_grid():
    maps = torch.zeros(1, 96, 6, 6)
    maps[0, 0, 0, 0] = 4.0
    assert ROI.whole(HypothesisNetwork("small", 2, "roi"), maps)[0, 0, 0].tolist() == [1, 0, 0]


def test_gradients_reach_the_feature_map():
    features = torch.zeros(1, 2, 2, requires_grad=True)
    pool_boxes(features, np.array([[0, 0, 2, 2]]), stride=1, grid=1).sum().backward()
    assert features.grad[0].tolist() == [[0.25, 0.25], [0.25, 0.25]]
