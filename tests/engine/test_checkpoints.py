import pytest
import torch

from tests.runs import empty_job
from wsseg_ray.backbones.named import NamedWeights
from wsseg_ray.engine.checkpoints import restore, weights_finding, weights_source
from wsseg_ray.engine.training import save
from wsseg_ray.errors import WeightsError


class OneWorker:
    rank, world = 0, 1

    def __init__(self, job):
        self.job = job


def test_what_is_saved_is_restored(tmp_path):
    worker = OneWorker(empty_job(tmp_path))
    assert restore(worker.job.run, "hcp", "state.pt") is None
    state = {"weights": torch.arange(3.0), "position": (1, 2), "log": [{"loss": 0.5}]}
    save(worker, state, "hcp", "state.pt")
    found = restore(worker.job.run, "hcp", "state.pt")
    assert torch.equal(found.pop("weights"), state.pop("weights")) and found == state


def test_worker_0_alone_saves(tmp_path):
    worker = OneWorker(empty_job(tmp_path))
    worker.rank = 1
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
    assert conv_alone.note == "w.pth holds the conv layers alone: of HCP fc6, fc7, fc8 start at random"
    last = found("w.pth", ["head.fc8.weight"])
    assert last.text == "HCP: w.pth; fc8 start at random" and last.good and last.problem is None and not last.note


def test_weights_that_cannot_be_used_are_a_problem():
    def build():
        raise WeightsError("w.pth: no tensors")

    found = weights_finding("HCP", "w.pth", build)
    assert not found.good and found.text == "HCP: w.pth: no tensors" and isinstance(found.problem, WeightsError)
