import numpy as np
import pytest

from wsseg_ray import tables
from wsseg_ray.tables import RunDirectory, plan_shards


class KilledBeforeRename(tables.fs.LocalFileSystem):
    def move(self, src, dest):
        raise OSError("killed")


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.at(str(tmp_path / "run"))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 130, 3131])
def test_shards_cover_every_photo_once(count):
    shards = plan_shards(count)
    assert [i for shard in shards for i in shard] == list(range(count))
    assert all(len(shard) <= tables.MAX_SHARD_ROWS for shard in shards)


def test_a_shard_round_trips(run):
    rows = [
        {"image_id": "a", "labels": [1, 3], "scores": np.array([[0.5, 1], [2, 3]], np.float16), "norm": [1.5]},
        {"image_id": "../b", "error": "broken"},
    ]
    run.write_shard("scores", "00000", rows)
    first, second = run.read_shard("scores", "00000")
    assert first["labels"].tolist() == [1, 3] and first["labels"].dtype == np.int32
    assert first["scores"].tolist() == [0.5, 1, 2, 3] and first["scores"].dtype == np.float16
    assert second["error"] == "broken" and second["features"].shape == (0,)
    assert list(run.read_good("scores", "00000", ["norm"])) == ["a"]
    assert run.shards("scores") == ["00000"] and run.shards("refined") == []
    assert run.read_shard("scores", "00001") == []


def test_text_lists_and_bytes_round_trip(run):
    run.write_shard("predictions", "0", [{"image_id": "a", "networks": ["SN_B"], "labels": [b"\x00png"]}])
    (row,) = run.rows("predictions")
    assert row["networks"] == ["SN_B"] and row["labels"] == [b"\x00png"] and row["labels_crf"] == []


def test_a_file_is_whole_or_absent(run, monkeypatch):
    run.write_bytes(b"old", "x", "file")
    monkeypatch.setattr(tables.fs, "LocalFileSystem", KilledBeforeRename)
    with pytest.raises(OSError):
        run.write_bytes(b"new and longer", "x", "file")
    assert run.read_bytes("x", "file") == b"old"


def test_json_and_delete(run):
    assert run.read_json("m.json") is None
    run.write_json({"a": 1}, "d", "m.json")
    assert run.read_json("d", "m.json") == {"a": 1}
    run.delete("d")
    run.delete("d")
    assert not run.exists("d", "m.json")
