import numpy as np
import pytest
from scipy import sparse

from wsseg_ray.hcp import LOSSES
from wsseg_ray.hcp.loss import Loss
from wsseg_ray.proposals.regions import RegionProposals


@pytest.fixture
def regions() -> RegionProposals:
    """The whole of a photo of 40x48 px, a quarter of it and a half."""
    superpixels = np.arange(4).reshape(2, 2).repeat(20, axis=0).repeat(24, axis=1)
    membership = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 1]], np.float32)
    return RegionProposals(superpixels, sparse.csr_array(membership))


@pytest.fixture
def squared() -> Loss:
    return LOSSES.get("squared")
