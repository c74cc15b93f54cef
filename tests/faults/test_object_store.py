"""A whole run on an object store, through a real S3 server, that goes away for a while in the middle."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest
from pyarrow import fs

from tests.runs import entries, measured, same_rows
from wsseg_ray import pipeline, recipe
from wsseg_ray.datasets.pixels import photo_size
from wsseg_ray.status import lines
from wsseg_ray.storage import RunDirectory, read_bytes
from wsseg_ray.tables import IMAGES, PROPOSALS, REFINED, SCORES, SUPERVISION, ImageRow

moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")


class Proxy:
    """Passes connections on to a server, while it is `open`; cuts them all when it is closed."""

    def __init__(self, port: int) -> None:
        self._target, self.open, self._live = ("127.0.0.1", port), True, []
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
                threading.Thread(target=_copy, args=pair, daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def store():
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    proxy = Proxy(server._server.port)
    query = f"scheme=http&endpoint_override=127.0.0.1:{proxy.port}&allow_bucket_creation=true"
    fs.FileSystem.from_uri(f"s3://key:secret@runs?{query}")[0].create_dir("runs")
    yield proxy, lambda name: f"s3://key:secret@runs/{name}?{query}"
    server.stop()


def test_a_run_directory_on_an_object_store(store):
    run = RunDirectory.at(store[1]("a/run"))
    assert not run.exists("x") and run.names() == [] and run.read_json("x") is None
    run.write_shard(IMAGES, "train-00000", [ImageRow("a"), ImageRow("b", "bad")])
    run.write_json([1], "stages", "images.json")
    assert run.shards("images") == ["train-00000"] and run.names() == ["images", "stages"]
    assert [row.image_id for row in run.rows(IMAGES)] == ["a", "b"]
    run.delete("images")
    run.delete("images")
    assert not run.exists("images") and run.read_json("stages", "images.json") == [1]
    with pytest.raises(FileNotFoundError):
        run.read_bytes("images", "x")


def test_the_demos_photos_lie_where_every_machine_can_read_them(store):
    place = RunDirectory.at(store[1]("demo"))
    loaded = recipe.load("demo", ["dataset.limit=6"])
    job = pipeline.prepare(loaded, place, pipeline.stages_of(loaded))
    assert len(job.listing.photos) == 12
    for photo in job.listing.photos:
        assert photo.uri.startswith("s3://") and photo_size(read_bytes(photo.uri)) and read_bytes(photo.mask_uri)


@pytest.mark.run
def test_a_run_without_ray_on_an_object_store(store, tiny, tiny_local):
    run = RunDirectory.at(store[1]("local"))
    outcome = pipeline.run(recipe.load("demo", [*tiny, "runtime.engine=local"]), run.root)
    assert outcome.failed == {} and "secret" not in outcome.report
    assert all(same_rows(run, tiny_local[1], table) for table in (SCORES, SUPERVISION))
    assert measured(run) == measured(tiny_local[1])


def test_a_run_on_an_object_store_that_goes_away_and_comes_back(store, cluster, tiny_run, tiny, monkeypatch):
    """The same tables, and no photo is called a failure: it waits, and goes on."""
    from wsseg_ray.engine.ray_runner import RayRunner

    proxy, place = store
    run = RunDirectory.at(place("run"))
    real, cut = RayRunner.map_shards, threading.Event()

    def cut_off() -> None:
        while not run.shards("scores"):
            cut.wait(0.05)
        proxy.close()
        cut.set()
        threading.Event().wait(3)
        proxy.open = True

    def map_and_cut(self, job, stage, work, todo):
        if stage.name == "score":
            threading.Thread(target=cut_off, daemon=True).start()
        return real(self, job, stage, work, todo)

    monkeypatch.setattr(RayRunner, "map_shards", map_and_cut)
    outcome = pipeline.run(recipe.load("demo", tiny), run.root, "supervise")
    assert cut.is_set() and outcome.failed == {}
    found = [entry for entry in entries(run).values() if entry]
    assert len(found) == 6 and all(entry["state"] == "done" and entry["failed"] == 0 for entry in found)
    for table in (IMAGES, PROPOSALS, SCORES, REFINED, SUPERVISION):
        assert same_rows(run, tiny_run[1], table), table.folder
    assert run.exists("report.html") and run.exists("hcp", "network.pt")
    for shown in (run.read_bytes("report.html").decode(), outcome.report, *lines(run)):
        assert "secret" not in shown
