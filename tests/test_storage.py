import errno
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsseg_ray import storage, tables
from wsseg_ray.storage import RunDirectory, StorageError, shown
from wsseg_ray.tables import IMAGES, PREDICTIONS, REFINED, SCORES, ImageRow, PredictionRow, ScoreRow


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.at(str(tmp_path / "run"))


def test_a_shard_round_trips(run):
    rows = [
        ScoreRow("a", labels=[1, 3], scores=np.array([[0.5, 1], [2, 3]], np.float16), candidate=[1], norm=[1.5]),
        ScoreRow("../b", "broken"),
    ]
    run.write_shard(SCORES, "00000", rows)
    first, second = run.read_shard(SCORES, "00000")
    assert first.labels.tolist() == [1, 3] and first.labels.dtype == np.int32
    assert first.scores.tolist() == [[0.5, 1], [2, 3]] and first.scores.dtype == np.float16
    assert second.error == "broken" and second.features.shape == (0,)
    assert run.shards("scores") == ["00000"] and run.shards("refined") == []
    assert run.read_shard(SCORES, "00001") == [] and run.read_good(REFINED, "00000") == {}


def test_columns_are_read_alone(run):
    run.write_shard(SCORES, "00000", [ScoreRow("a", candidate=[1], norm=[1.5]), ScoreRow("b", "broken")])
    found = run.read_good(SCORES, "00000", ["norm"])
    assert list(found) == ["a"] and found["a"].norm.tolist() == [1.5]
    with pytest.raises(AttributeError, match="features"):
        _ = found["a"].features
    assert [row.error for row in run.rows(SCORES, ["error"])] == ["", "broken"]


def test_shards_are_those_of_a_split(run):
    for name in ("train-00001", "val-00000", "train-00000"):
        run.write_shard(SCORES, name, [])
    run.write_bytes(b"", "scores", "pca.npz")
    assert run.shards("scores") == ["train-00000", "train-00001", "val-00000"]
    assert run.shards("scores", "train") == ["train-00000", "train-00001"] and run.shards("scores", "val") == [
        "val-00000"
    ]
    assert run.read_shard(SCORES, "val-00000") == [] == list(run.rows(SCORES))


def test_text_lists_and_bytes_round_trip(run):
    run.write_shard(PREDICTIONS, "0", [PredictionRow("a", networks=["SN_B"], png=[b"\x00png"])])
    (row,) = run.rows(PREDICTIONS)
    assert row.networks == ["SN_B"] and row.png == [b"\x00png"] and row.png_crf == []


def refuse(*_, **__):
    raise OSError(errno.EPERM, "killed")


def test_a_file_is_whole_or_absent(run, monkeypatch):
    run.write_bytes(b"old", "x", "file")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError, match="x/file cannot be written: killed"):
        run.write_bytes(b"new and longer", "x", "file")
    assert run.read_bytes("x", "file") == b"old" and run.names("x") == ["file"]


def test_a_full_disk_is_no_photos_fault(run, monkeypatch):
    run.write_bytes(b"", "x")
    monkeypatch.setattr(storage.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(StorageError, match="y cannot be written: No space left"):
        run.write_bytes(b"1", "y")
    assert run.names() == ["x"]


def test_a_name_that_no_disk_takes_is_its_photos_fault(run):
    with pytest.raises(OSError, match="too long"):
        run.write_bytes(b"1", "x" * 300)


@pytest.mark.parametrize("failures", [1, 3])
def test_storage_that_fails_for_a_while_is_asked_again(run, monkeypatch, failures):
    run.write_bytes(b"1", "x")
    real, left = storage.fs.LocalFileSystem.open_input_file, [failures]

    class Flaky(storage.fs.LocalFileSystem):
        def open_input_file(self, path):
            left[0] -= 1
            if left[0] >= 0:
                raise OSError(errno.ESTALE, "Stale file handle")
            return real(self, path)

    pauses = []
    monkeypatch.setattr(storage.fs, "LocalFileSystem", Flaky)
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    assert run.read_bytes("x") == b"1"
    assert len(pauses) == failures and all(pause > 0 for pause in pauses)
    monkeypatch.setattr(storage, "PATIENCE", 0.0)
    left[0] = 10**9
    with pytest.raises(StorageError, match="Stale file handle"):
        run.read_bytes("x")


def test_what_is_not_there_is_not_waited_for(run, monkeypatch):
    monkeypatch.setattr(storage.time, "sleep", refuse)
    with pytest.raises(FileNotFoundError):
        run.read_bytes("nowhere")
    assert not run.exists("nowhere") and run.names("nowhere") == []


@pytest.mark.parametrize(
    ("place", "root", "file"),
    [
        ("s3://bucket/run/", "s3://bucket/run", "s3://bucket/run/a/b"),
        ("s3://bucket/run/?scheme=http", "s3://bucket/run?scheme=http", "s3://bucket/run/a/b?scheme=http"),
        ("/tmp/what?", "/tmp/what?", "/tmp/what?/a/b"),
    ],
)
def test_where_a_run_lies(place, root, file):
    run = RunDirectory.at(place)
    assert run.root == root and run.uri("a", "b") == file and run.is_local == (root[0] == "/")


@given(name=st.text(min_size=1).filter(lambda name: "/" not in name and name not in (".", "..")))
def test_no_name_says_anything_to_an_object_store(name):
    """It is a name, whatever is in it: no query, no fragment, no escape."""
    place = RunDirectory("s3://bucket/run?scheme=http&endpoint_override=127.0.0.1:9", {"scores": "f" * 16})
    asked = []
    with mock.patch.object(storage, "_object_store", lambda bucket: asked.append(bucket) or ("store", "bucket")):
        found = [storage.filesystem_of(place.uri(*parts)) for parts in ((name,), ("scores", name), (name, "x"))]
    below = [name, f"scores/{'f' * 16}/{name}", f"{name}/x"]
    assert found == [("store", f"bucket/run/{path}") for path in below]
    assert set(asked) == {"s3://bucket?scheme=http&endpoint_override=127.0.0.1:9"}


def test_json_and_delete(run):
    assert run.read_json("m.json") is None
    run.write_json({"a": 1}, "d", "m.json")
    assert run.read_json("d", "m.json") == {"a": 1}
    run.delete("d")
    run.delete("d")
    assert not run.exists("d", "m.json")


@pytest.mark.parametrize("place", ["/a@b", "s3://bucket/a@b", "s3://bucket?endpoint_override=host:9000", "file:///a@b"])
def test_credentials_are_not_shown(place):
    assert shown(place) == place
    assert shown(place.replace("s3://", "s3://key:secret@")) == place


def columns_of(run: RunDirectory, table: str) -> dict:
    (group,) = [pq.ParquetFile(Path(run.root, table, "train-00000.parquet")).metadata.row_group(0)]
    return {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}


def test_how_columns_are_stored(tmp_path):
    """Dictionaries of numbers took twice the time; the bytes of floats lie apart; half precision is not compressed."""
    run = RunDirectory.at(str(tmp_path))
    run.write_shard(tables.FEATURES, "train-00000", [tables.FeatureRow("a", maps=np.ones(8, np.float16))])
    columns = columns_of(run, "features")
    assert columns["maps.list.element"].compression == "UNCOMPRESSED"
    assert columns["shapes.list.element"].compression == columns["image_id"].compression == "ZSTD"
    assert columns["image_id"].has_dictionary_page and not columns["shapes.list.element"].has_dictionary_page
    row = tables.ProposalRow("a", objectness=np.ones(8, np.float32))
    run.write_shard(tables.PROPOSALS, "train-00000", [row])
    assert "BYTE_STREAM_SPLIT" in columns_of(run, "proposals")["objectness.list.element"].encodings


def test_a_table_is_read_without_threads_of_arrow(tmp_path):
    """Such threads abort a process that ends at once after it has read (Arrow's issue 34314)."""
    run = RunDirectory.at(str(tmp_path))
    run.write_shard(IMAGES, "train-00000", [ImageRow("a", labels=[0]), ImageRow("b", labels=[1])])
    code = (
        "import os, sys\n"
        "from wsseg_ray.storage import RunDirectory\n"
        "from wsseg_ray.tables import IMAGES\n"
        "run = RunDirectory.at(sys.argv[1])\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "assert len(run.read_shard(IMAGES, 'train-00000', ['labels'])) == 2\n"
        "assert len(os.listdir('/proc/self/task')) == before\n"
    )
    subprocess.run([sys.executable, "-c", code, run.root], check=True)
