"""A Google Cloud Storage server, for `test_google_store`: prints its port and serves until its input ends.

It is a process of its own: pyarrow keeps Python's lock in some calls to this store, and a server in the same process
could not answer.
"""

import sys
from http import server

server.HTTPServer = server.ThreadingHTTPServer  # a client has several connections open

from gcp_storage_emulator.server import create_server  # noqa: E402

emulator = create_server("127.0.0.1", 0, in_memory=True, default_bucket="runs")
emulator.start()
print(emulator._api._httpd.server_address[1], flush=True)
sys.stdin.read()
emulator.stop()
