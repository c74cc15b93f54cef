import json
import sys

import numpy as np
import pytest

from benchmarks import refinement
from benchmarks.refinement import BLOCK, DIMS, ENGINES, GROUP, TOLERANCE, draw, layout, stream, write
from wsseg_ray.refinement.distance import moments_distance, photo_moments, sum_moments


def drawn(count: int) -> np.ndarray:
    return np.concatenate([draw(block) for block in layout(count)]).astype(np.float32)


@pytest.mark.parametrize("count", [1, 300, BLOCK + 40])
def test_blocks_hold_whole_groups_of_about_ten(count):
    blocks = list(layout(count))
    assert [block.begin for block in blocks] == list(range(0, count, BLOCK)) and blocks[-1].end == count
    for block in blocks:
        sizes = np.diff(block.starts, append=block.end - block.begin)
        assert block.starts[0] == 0 and sizes.min() >= 1 and len(block.classes) == len(sizes)
        assert count == 1 or abs(sizes.mean() - GROUP) < 1


def test_a_prefix_is_the_same_for_every_count():
    first, longer = next(layout(BLOCK)), next(layout(3 * BLOCK))
    assert (first.starts == longer.starts).all() and (first.classes == longer.classes).all()
    assert draw(first).dtype == np.float16 and (draw(first) == draw(longer)).all() and draw(first).min() >= 0


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


def test_main_prints_a_table_and_json(monkeypatch, capsys):
    pytest.importorskip("faiss")
    monkeypatch.setattr(sys, "argv", ["refinement.py", "--sizes", "2e2", "--streamed", "300"])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # main sets it, and it is set back
    refinement.main()
    lines = capsys.readouterr().out.strip().splitlines()
    printed = json.loads(lines[-1])
    assert [row["engine"] for row in printed["in_memory"]] == list(ENGINES) and printed["dims"] == DIMS
    assert [(row["engine"], row["proposals"]) for row in printed["streamed"]] == [("moments, streamed", 300)]
    assert all(row["difference"] <= TOLERANCE for row in printed["in_memory"])
    assert sum(line.startswith("| ") for line in lines) == 2 + 4


def test_says_which_engine_is_left_out(monkeypatch, capsys):
    monkeypatch.setitem(refinement.NEEDS, "faiss", "no_such_library")
    assert refinement.installed() == ["moments", "sklearn"]
    assert "faiss is left out" in capsys.readouterr().err
