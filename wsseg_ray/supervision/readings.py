"""Readings: how the scores of a photo's proposals become one map per class."""

from __future__ import annotations

import numpy as np

from wsseg_ray.supervision import Evidence
from wsseg_ray.supervision.maps import localization_maps, normalize_max

SHARE_OF_MASKS = 0.4  # of SAM's masks in a map, where there are any


def votes(evidence: Evidence) -> np.ndarray:
    """The paper's reading (Sec. 3.3.1): the share of the kept candidates that cover a superpixel, (K, S) float64."""
    return localization_maps(evidence.regions, evidence.kept)


def mean_score(evidence: Evidence) -> np.ndarray:
    """The mean score of the proposals that cover a superpixel: `p^k = (w s^k) M / (w M)`.

    The weight of proposal n is `w_n = objectness_n^2 / sqrt(area_n)`: large proposals cover an object and much else.
    Votes count only the proposals above a threshold. This mean also counts the proposals that show no object, so it is
    low where many of them lie. A candidate that the refinement drops has no weight for its class.

    SAM's masks are few but good, so they have a map of their own, which is 0 where no mask lies. Each of the two maps
    is divided by its maximum, and the result is 0.6 of the one plus 0.4 of the other.

    Returns (K, S) float64 in [0, 1]; 0 where no proposal has a weight. Costs K nnz(M).

    The first superpixel lies in both proposals, the second in the larger one:

    >>> import numpy as np
    >>> from scipy import sparse
    >>> from wsseg_ray.proposals.regions import RegionProposals
    >>> regions = RegionProposals(np.array([[0, 1, 1, 1]]), sparse.csr_array([[1.0, 0.0], [1.0, 1.0]]))
    >>> scores, none = np.array([[0.9, 0.3]]), [np.array([], int)]
    >>> found = Evidence(regions, [0], scores, np.ones(2), np.zeros(2), none, none, np.zeros((1, 2)), lambda: None)
    >>> mean_score(found).round(2).tolist()  # (0.9 + 0.3 / 2) / (1 + 1 / 2), and 0.3
    [[0.7, 0.3]]
    """
    is_mask = evidence.is_mask == 1
    plain = _weighted_mean(evidence, ~is_mask)
    if not is_mask.any():
        return plain
    masks = _weighted_mean(evidence, is_mask)
    return (1 - SHARE_OF_MASKS) * normalize_max(plain) + SHARE_OF_MASKS * normalize_max(masks)


def _weighted_mean(evidence: Evidence, chosen: np.ndarray) -> np.ndarray:
    """`mean_score` over the chosen proposals (N,) bool."""
    regions = evidence.regions
    membership = regions.membership.astype(np.float64)
    weights = chosen * np.float64(evidence.objectness) ** 2 / np.sqrt(regions.region_areas)
    maps = np.zeros((len(evidence.labels), len(regions.areas)))
    for p, s, dropped in zip(maps, evidence.scores, evidence.dropped, strict=True):
        own = weights.copy()
        own[dropped] = 0
        total = own @ membership
        np.divide((own * s) @ membership, total, out=p, where=total > 0)
    return maps
