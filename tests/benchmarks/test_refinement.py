"""The engines that docs/results/refinement.md times compute the same distances."""

import numpy as np
import pytest

from benchmarks import refinement
from benchmarks.refinement import BLOCK, ENGINES, TOLERANCE, draw, layout, stream, write
from wsseg_ray.refinement.distance import moments_distance, photo_moments, sum_moments


def drawn(count: int) -> np.ndarray:
    return np.concatenate([draw(block) for block in layout(count)]).astype(np.float32)


def test_the_engines_agree():
    pytest.importorskip("faiss")
    features = drawn(BLOCK + 200)
    found = {name: engine(features) for name, engine in ENGINES.items()}
    for name in ("faiss", "sklearn"):
        np.testing.assert_allclose(found[name], found["moments"], rtol=TOLERANCE)


def test_blocks_threads_and_the_disk_do_not_change_a_bit(tmp_path, monkeypatch):
    count = 2 * BLOCK + 30
    write(tmp_path / "features", count)
    features = drawn(count)
    blocks = list(layout(count))
    starts = np.concatenate([block.begin + block.starts for block in blocks])
    classes = np.concatenate([block.classes for block in blocks])
    own = photo_moments(features, starts)
    whole = moments_distance(features, starts, classes, own, sum_moments(classes, *own, 20))
    for threads in (1, 3):
        monkeypatch.setattr(refinement, "THREADS", threads)
        assert (ENGINES["moments"](features) == whole).all()
        stream(tmp_path / "features", tmp_path / "distances", count)
        assert (np.fromfile(tmp_path / "distances", np.float32) == whole.astype(np.float32)).all()
