import numpy as np
import pytest
import torch
from scipy import sparse

from wsseg_ray.hcp.pooling.context import CONTEXT, pool_context
from wsseg_ray.hcp.pooling.segment import SEGMENT, pool_segments
from wsseg_ray.hcp.pooling.sums import shares_of, sums_over
from wsseg_ray.proposals.regions import RegionProposals

REGIONS = RegionProposals(np.array([[0, 0, 1, 1], [0, 0, 1, 2]]), sparse.csr_array([[1.0, 0, 0], [0, 1, 1]]))


MORE = RegionProposals(np.array([[0], [1]]), sparse.csr_array([[1.0, 1], [0, 1], [1, 0]]))


def test_sums_by_hand():
    """A photo of 2x4 pixels over a map of 1x2 cells: columns see the left cell with 1, 3/4, 1/4 and 0."""
    features = torch.tensor([[[4.0, 8.0]], [[1.0, 1.0]]])
    sums = sums_over([features], [shares_of(REGIONS, 1, 2)])
    assert sums.inside.tolist() == [[2 * 4 + 2 * 5, 4], [2 * 7 + 2 * 8, 4]]
    assert sums.whole.tolist() == [[48, 8]] and sums.areas.tolist() == sums.pixels.div(2).tolist() == [[4], [4]]


@pytest.mark.parametrize(("pooling", "alone"), [(SEGMENT, pool_segments), (CONTEXT, pool_context)])
def test_photos_that_pass_together_get_what_each_gets_alone(pooling, alone):
    """They have other sizes, superpixels and regions; one has no region."""
    none = RegionProposals(np.zeros((2, 2), int), sparse.csr_array((0, 1), dtype=np.float32))
    photos = [(torch.randn(3, 2, 2), REGIONS), (torch.randn(3, 1, 1), none), (torch.randn(3, 2, 1), MORE)]
    maps = [features for features, _ in photos]
    shares = [shares_of(regions, *features.shape[1:]) for features, regions in photos]
    assert [len(own) for own in shares] == [2, 0, 3]
    found = pooling.pool(maps, shares).split([2, 0, 3])
    for own, (features, regions) in zip(found, photos, strict=True):
        torch.testing.assert_close(own, alone(features, regions), rtol=1e-5, atol=1e-6)
        assert own.shape == (len(regions), 3 * pooling.cells)
