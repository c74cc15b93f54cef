"""PCA of the proposals' features, fitted on a sample (Sec. 3.2)."""

from __future__ import annotations

from typing import Any

import numpy as np


def fit_pca(sample: np.ndarray, energy: float, dims: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The fewest principal components that keep a share of the features' variance, at most `dims`, at least one.

    Deterministic. For few of many dimensions, scikit-learn uses a randomized decomposition, here with a fixed seed:
    512 of 4,096 dimensions of 5,000 features cost 10 to 20 s on two cores.

    Arguments:
        sample: (n, D), n >= 1.
        energy: share of the variance to keep, 0..1; 0.98 in the paper.
    Returns the mean (D,), the components (d, D) with orthonormal rows, both float32, and the energy they keep.
    Raises ValueError for an empty sample or values that are not finite.
    """
    from sklearn.decomposition import PCA  # imported here: it costs a second, and actors do not need it

    if sample.ndim != 2 or len(sample) == 0:
        raise ValueError(f"PCA needs at least one feature vector, got an array of shape {sample.shape}")
    sample = sample.astype(np.float32)
    if (sample == sample[0]).all():  # no variance: every direction keeps all of it
        return sample[0], np.eye(1, sample.shape[1], dtype=np.float32), 1.0
    pca = PCA(n_components=min(dims, *sample.shape), random_state=0).fit(sample)
    kept = np.cumsum(pca.explained_variance_ratio_, dtype=np.float64)
    count = min(int(np.searchsorted(kept, energy)) + 1, len(kept))
    return pca.mean_, pca.components_[:count], min(float(kept[count - 1]), 1.0)


def project(features: Any, mean: Any, components: Any) -> Any:
    """Features (n, D) projected on the principal components (d, D): (n, d). Arrays, or tensors of one device."""
    return (features - mean) @ components.T
