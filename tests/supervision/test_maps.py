import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from wsseg_ray.proposals.regions import RegionProposals, from_masks
from wsseg_ray.supervision.maps import background, localization_maps, normalize_max

REGIONS = RegionProposals(
    np.array([[0, 0, 1], [2, 2, 1]]), sparse.csr_array(np.array([[1, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32))
)


def test_localization_maps():
    maps = localization_maps(REGIONS, [np.array([0, 2]), np.array([], int), np.array([False, True, False])])
    assert maps.tolist() == [[1, 1, 0.5], [0, 0, 0], [0, 0, 1]]
    assert localization_maps(REGIONS, []).shape == (0, 3)


def test_normalize_max():
    maps = np.array([[0.25, 0.5, 0.0], [0, 0, 0]])
    assert normalize_max(maps).tolist() == [[0.5, 1, 0], [0, 0, 0]]
    assert normalize_max(np.empty((0, 3))).shape == (0, 3)


def test_background():
    assert background(np.array([[1, 0.25, 0], [0.5, 0.25, 0]])).tolist() == [0, 0.5, 1]
    assert background(np.empty((0, 2))).tolist() == [1, 1]


@given(hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))), st.integers(0, 1000))
def test_equal_dense_pixels(masks, seed):
    masks[0] = True
    regions = from_masks(masks)
    dense = masks[masks.any(axis=(1, 2))]
    kept = [np.random.default_rng(seed + k).random(len(dense)) < 0.5 for k in range(3)]
    pixels = np.array([dense[k].mean(axis=0) if k.any() else np.zeros(dense.shape[1:]) for k in kept])
    maps = localization_maps(regions, kept)
    np.testing.assert_allclose(maps[:, regions.superpixels], pixels)
    np.testing.assert_allclose(background(maps)[regions.superpixels], np.maximum(0, 1 - pixels.sum(axis=0)))
    peaks = pixels.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(normalize_max(maps)[:, regions.superpixels], pixels / np.where(peaks > 0, peaks, 1))
