import numpy as np
import pytest
import torch
from scipy import sparse

from wsseg_ray.hcp.pooling.context import CONTEXT, pool_context
from wsseg_ray.hcp.pooling.segment import SEGMENT
from wsseg_ray.proposals.regions import RegionProposals


def test_context_is_the_difference_from_the_rest():
    features = torch.tensor([[[1.0, 2.0], [4.0, 7.0]], [[0.0, 0.0], [0.0, 1.0]]])
    members = sparse.csr_array(np.array([[1, 0, 0], [0, 1, 1], [1, 1, 1]], np.float32))
    pooled = pool_context(features, RegionProposals(np.array([[0, 1], [2, 2]]), members))
    np.testing.assert_allclose(pooled[0], [1, 0, 1 - 13 / 3, -1 / 3], rtol=1e-6)
    np.testing.assert_allclose(pooled[1], [13 / 3, 1 / 3, 13 / 3 - 1, 1 / 3], rtol=1e-6)
    assert pooled[2].tolist() == [3.5, 0.25, 0, 0]


def test_nothing_lies_around_the_whole_photo():
    maps = torch.zeros(1, 96, 6, 6)
    maps[0, 0, 0, 0] = 4.0
    found = CONTEXT.whole(None, maps)[0]
    assert found.shape == (2 * 96,) and found[0] == pytest.approx(4 / 36) and not found[1:].any()


def test_differences_start_without_weight():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 512 * 7 * 7, generator=generator, dtype=torch.float64)
    segment = torch.rand(3, 512, generator=generator, dtype=torch.float64)
    doubled = CONTEXT.convert_fc6(weight)
    assert doubled.shape == (5, 1024)
    assert torch.allclose(torch.cat([segment, segment], dim=1) @ doubled.T, segment @ SEGMENT.convert_fc6(weight).T)
