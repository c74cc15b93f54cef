"""What stands between a run and its object store, and can cut the way."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

METHODS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")


class Proxy:
    """Passes connections on to a server, while it is `open`; cuts them all when it is closed.

    Of `every` so many requests it cuts the connection of one; 0: of none.
    """

    def __init__(self, port: int) -> None:
        self._target, self.open, self._live, self._lock = (
            ("127.0.0.1", port),
            True,
            set[socket.socket](),
            threading.Lock(),
        )
        self.every = self.cuts = self._requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with self._lock:
            self.open = False
            for connection in self._live:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One connection, until it ends; then its handles are given back."""
        with client, suppress(OSError), socket.create_connection(self._target) as server:
            pair = {client, server}
            with self._lock:
                if not self.open:
                    return
                self._live |= pair
            back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
            back.start()
            self._copy(client, server)
            back.join()
            with self._lock:
                self._live -= pair

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
