"""A real S3 server, which can be cut off."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest
from pyarrow import fs

METHODS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")


class Proxy:
    """Passes connections on to a server, while it is `open`; cuts them all when it is closed.

    Of `every` so many requests it cuts the connection of one; 0: of none.
    """

    def __init__(self, port: int) -> None:
        self._target, self.open, self._live = ("127.0.0.1", port), True, []
        self.every = self.cuts = self._requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.open = False
        for connection in self._live:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if not self.open:
                client.close()
                continue
            server = socket.create_connection(self._target)
            self._live += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                if self._is_lost(data):
                    break
                sink.sendall(data)
        _end(source, sink)

    def _is_lost(self, data: bytes) -> bool:
        self._requests += data.startswith(METHODS)
        lost = bool(self.every) and data.startswith(METHODS) and self._requests % self.every == 0
        self.cuts += lost
        return lost


def _end(source: socket.socket, sink: socket.socket) -> None:
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


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
