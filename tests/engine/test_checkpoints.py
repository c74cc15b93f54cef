from threading import Event

import pytest
import torch

from tests.engine.two_workers import AWorker
from tests.runs import empty_job
from wsseg_ray.backbones.named import NamedWeights
from wsseg_ray.engine import training
from wsseg_ray.engine.checkpoints import restore, weights_finding, weights_source
from wsseg_ray.engine.training import Saver, resumed, save
from wsseg_ray.errors import WeightsError
from wsseg_ray.storage import RunDirectory


def test_what_is_saved_is_restored(tmp_path):
    worker = AWorker(job=empty_job(tmp_path))
    assert restore(worker.job.run, "hcp", "state.pt") is None
    state = {"weights": torch.arange(3.0), "position": (1, 2), "log": [{"loss": 0.5}]}
    save(worker, state, "hcp", "state.pt")
    found = restore(worker.job.run, "hcp", "state.pt")
    assert torch.equal(found.pop("weights"), state.pop("weights")) and found == state


def test_a_training_goes_on_while_its_state_is_written(tmp_path, monkeypatch):
    """The file has the numbers of the time of `save`; the next file waits for it."""
    worker, may_write = AWorker(job=empty_job(tmp_path)), Event()
    write = RunDirectory.write_bytes

    def slow(run, data, *place):
        assert may_write.wait(60)
        write(run, data, *place)

    monkeypatch.setattr(RunDirectory, "write_bytes", slow)
    weights = torch.ones(3)
    with Saver(worker) as saver:
        saver.save({"weights": weights}, "hcp", "state.pt")
        weights.zero_()
        assert restore(worker.job.run, "hcp", "state.pt") is None
        may_write.set()
        saver.save({"weights": weights}, "hcp", "next.pt")
        assert restore(worker.job.run, "hcp", "state.pt")["weights"].tolist() == [1, 1, 1]
    assert restore(worker.job.run, "hcp", "next.pt")["weights"].tolist() == [0, 0, 0]


def test_a_training_is_saved_at_times_and_always_when_its_machine_will_go(tmp_path, monkeypatch):
    seconds, may_write = [100.0], Event()
    monkeypatch.setattr(training.time, "monotonic", lambda: seconds[0])
    worker = AWorker(job=empty_job(tmp_path, "runtime.checkpoint_minutes=1"))
    with Saver(worker) as saver:
        assert not saver.is_due()
        seconds[0] += 60
        assert saver.is_due()
        saver.save({}, "hcp", "state.pt")
        assert not saver.is_due()
        worker.preempted = True
        saver.wait()
        assert saver.is_due()
        monkeypatch.setattr(RunDirectory, "write_bytes", lambda *_: may_write.wait(60))
        saver.save({}, "hcp", "state.pt")
        assert not saver.is_due(), "the file before is not written yet"
        may_write.set()
        saver.wait()
        assert saver.is_due()


def test_workers_go_on_from_the_same_state(tmp_path, monkeypatch):
    """A last file of workers that were killed arrives after worker 0 has read and before worker 1 reads."""
    worker = AWorker(rank=0, world=2, job=empty_job(tmp_path))
    assert resumed(AWorker(job=worker.job), "hcp", "state.pt") is None
    save(worker, {"step": 1}, "hcp", "state.pt")
    asked = []

    def other_worker_reads(mark, operation):
        if not asked:
            save(worker, {"step": 2}, "hcp", "state.pt")
            mark.copy_(torch.tensor([mark[0] + 1, mark[1]]))  # the other's number is larger by one
        asked.append(mark)

    monkeypatch.setattr(torch.distributed, "all_reduce", other_worker_reads)
    assert resumed(worker, "hcp", "state.pt") == {"step": 2} and len(asked) == 2


def test_a_state_that_cannot_be_written_stops_the_training(tmp_path, monkeypatch):
    def full(run, data, *place):
        raise OSError("No space left on device")

    monkeypatch.setattr(RunDirectory, "write_bytes", full)
    worker = AWorker(job=empty_job(tmp_path))
    with pytest.raises(OSError, match="No space left"), Saver(worker) as saver:
        saver.save({}, "hcp", "state.pt")
    with Saver(worker) as saver:
        saver.save({}, "hcp", "state.pt")
        with pytest.raises(OSError, match="No space left"):
            saver.save({}, "hcp", "state.pt")
    with pytest.raises(ZeroDivisionError), Saver(worker) as saver:  # the first error is the one that is told
        saver.save({}, "hcp", "state.pt")
        raise ZeroDivisionError
    with Saver(AWorker(rank=1, world=2, job=worker.job)) as saver:  # only worker 0 writes
        saver.save({}, "hcp", "state.pt")


def test_worker_0_alone_saves(tmp_path):
    worker = AWorker(rank=1, world=2, job=empty_job(tmp_path))
    save(worker, {}, "hcp", "state.pt")
    assert worker.job.run.names("hcp") == []


def test_where_weights_come_from(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    assert weights_source("imagenet") == "imagenet"
    assert weights_source(str(tmp_path / "w.pth")) == b"weights"
    with pytest.raises(WeightsError, match=r"weights .*none\.pth cannot be read .*give a file, one of auto, imagenet"):
        weights_source(str(tmp_path / "none.pth"))


def test_what_is_said_of_weights():
    named = {"packaged": NamedWeights(dict, lambda: "25 MB", "Apache-2.0")}

    def found(weights, fresh):
        return weights_finding("HCP", weights, lambda: (None, fresh), named)

    assert found(None, ["fc6.weight"]).text == "HCP: none; all layers start at random"
    assert found("w.pth", []).text == "HCP: w.pth" and found("w.pth", []).note == ""
    assert found("random", ["fc6.weight"]).text == "HCP: none; all layers start at random"
    assert found("hcp", ["head.fc6.weight"]).text == "HCP: the backbone of this run's HCP"
    assert found("auto", []).text == found("packaged", []).text == "HCP: packaged (25 MB)"
    conv_alone = found("w.pth", ["head.fc6.weight", "head.fc6.bias", "head.fc7.weight", "head.fc8.weight"])
    assert conv_alone.text == "HCP: w.pth; fc6, fc7, fc8 start at random"
    assert conv_alone.note == "w.pth holds only the conv layers: in HCP, fc6, fc7, fc8 start at random"
    last = found("w.pth", ["head.fc8.weight"])
    assert last.text == "HCP: w.pth; fc8 start at random" and last.good and last.problem is None and not last.note


def test_weights_that_cannot_be_used_are_a_problem():
    def build():
        raise WeightsError("w.pth: no tensors")

    found = weights_finding("HCP", "w.pth", build)
    assert not found.good and found.text == "HCP: w.pth: no tensors" and isinstance(found.problem, WeightsError)
