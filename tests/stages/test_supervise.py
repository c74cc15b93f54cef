"""Which regions the rough mask ranks, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from wsseg_ray import recipe
from wsseg_ray.proposals.regions import RegionProposals
from wsseg_ray.stages.supervise import _maps_and_mask

# three superpixels of one pixel; a proposal for each, and one for the first two
REGIONS = RegionProposals(
    np.array([[0, 1, 2]]), sparse.csr_array(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], np.float32))
)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("all", [0, 0, 5]),  # proposal 2 has the best value, 1.5 + 0
        ("candidates", [0, 5, 0]),  # of the candidates 0, 1 and 3, proposal 1: 0.9 + 0, above 0.2 + 0.5 and -0.5 + 1
    ],
)
def test_the_pool_is_all_regions_or_the_candidates_whether_kept_or_not(pool, expected):
    loaded = recipe.load("demo", [f"supervision={{pool: {pool}, regions: 1, normalize: none}}"])
    row = {
        "labels": np.array([4]),
        "candidate": np.array([3, 1, 0]),
        "candidate_label": np.array([4, 4, 4]),
    }
    kept = np.array([False, False, True])  # the map is proposal 0 alone
    scores = np.array([[-0.5, 0.9, 1.5, 0.2]])
    maps, mask = _maps_and_mask(SimpleNamespace(recipe=loaded), row, REGIONS, scores, kept)
    assert maps.tolist() == [[1, 0, 0]]
    assert mask.tolist() == expected
