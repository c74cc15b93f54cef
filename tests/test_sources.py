import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsseg_ray import sources
from wsseg_ray.sources import parquet_cell, read_bytes, tar_part
from wsseg_ray.storage import StorageError


class Answers(BaseHTTPRequestHandler):
    """`/photo` answers, `/busy` only the third time, `/gone` never."""

    busy = 0

    def do_GET(self):
        Answers.busy += self.path == "/busy"
        code = 404 if self.path == "/gone" else 503 if self.path == "/busy" and Answers.busy < 3 else 200
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"photo")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_web_address(web, monkeypatch):
    monkeypatch.setattr(sources.time, "sleep", lambda seconds: None)
    assert read_bytes(f"{web}/photo") == b"photo"
    Answers.busy = 0
    assert read_bytes(f"{web}/busy") == b"photo" and Answers.busy == 3
    with pytest.raises(OSError, match="gone: the server answers 404"):
        read_bytes(f"{web}/gone")
    with pytest.raises(OSError, match="cannot be read"):
        read_bytes("http://127.0.0.1:9/photo")
    monkeypatch.setattr(sources, "MOST_BYTES", 4)
    with pytest.raises(OSError, match="more than 0 MB"):
        read_bytes(f"{web}/photo")


def test_a_part_of_a_tar_file(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"0123456789")
    assert read_bytes(tar_part(f"{tmp_path}/x.tar", 3, 4)) == b"3456"
    with pytest.raises(OSError, match=r"x\.tar ends before byte 13"):
        read_bytes(tar_part(f"{tmp_path}/x.tar", 9, 4))
    with pytest.raises(FileNotFoundError):
        read_bytes(tar_part(f"{tmp_path}/y.tar", 3, 4))


def test_a_file_whose_name_looks_like_a_part_is_a_file(tmp_path):
    (tmp_path / "x.jpg#bytes=1+2").write_bytes(b"photo")
    assert read_bytes(f"{tmp_path}/x.jpg#bytes=1+2") == b"photo"


def test_what_could_be_read_for_ever_is_refused(tmp_path, monkeypatch):
    """A pipe, a device, a folder; and a file that is too large, wherever it lies."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe", "link", "folder"):
        with pytest.raises(OSError, match=rf"{name}\.jpg is no regular file"):
            read_bytes(f"{tmp_path}/{name}.jpg")
    monkeypatch.setattr(sources, "MOST_BYTES", 10_000_000)
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(12_000_000)
    with pytest.raises(OSError, match=r"large\.jpg has 12 MB, more than 10"):
        read_bytes(f"{tmp_path}/large.jpg")


def test_cells_of_a_parquet_file(tmp_path):
    file = tmp_path / "x.parquet"
    rows = [{"image": {"bytes": str(k).encode() if k != 4 else None, "path": None}} for k in range(7)]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=3)
    for row in (0, 2, 3, 5, 6):
        assert read_bytes(parquet_cell(str(file), row, "image.bytes")) == str(row).encode()
    with pytest.raises(OSError, match="row 4: no bytes in image"):
        read_bytes(parquet_cell(str(file), 4, "image.bytes"))
    with pytest.raises(StorageError, match="has 7 rows, and no row 7"):
        read_bytes(parquet_cell(str(file), 7, "image.bytes"))
