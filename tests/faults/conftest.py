"""A real S3 server, which can be cut off."""

from __future__ import annotations

import pytest
from pyarrow import fs

from tests.faults.proxy import Proxy


@pytest.fixture(scope="module")
def store():
    """The server behind a proxy, and `name -> URI` of a place in its bucket `runs`."""
    moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    proxy = Proxy(server._server.port)
    query = f"scheme=http&endpoint_override=127.0.0.1:{proxy.port}&allow_bucket_creation=true"
    fs.FileSystem.from_uri(f"s3://runs?{query}")[0].create_dir("runs")
    yield proxy, lambda name: f"s3://runs/{name}?{query}"
    server.stop()


@pytest.fixture
def upload(store):
    """`(bucket, {path: bytes}) -> URI` of a bucket of its own with these objects."""

    def make(bucket: str, files: dict[str, bytes]) -> str:
        place = store[1]("").replace("s3://runs/", f"s3://{bucket}")
        filesystem, name = fs.FileSystem.from_uri(place)
        filesystem.create_dir(name)
        for path, data in files.items():
            with filesystem.open_output_stream(f"{name}/{path}") as stream:
                stream.write(data)
        return place

    return make
