"""HCP's training: the same weights with any number of workers; its average precision from the table of scores."""

import io
import math
import shutil

import numpy as np
import pytest
import torch

from wsseg_ray import pipeline, recipe
from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.stages import score, train_hcp, training
from wsseg_ray.stages.job import Job, open_run
from wsseg_ray.tables import RunDirectory


def gradients(job: Job, phase: str, parts: list[list[tuple[str, str]]]) -> dict[str, torch.Tensor]:
    """What workers with these parts of a batch sum up, with half of fc6 and fc7 dropped, as in VGG-16.

    BatchNorm, which VGG-16 does not have, keeps its statistics: it would take those of the part.
    """
    torch.manual_seed(0)
    network = HypothesisNetwork("small", len(job.classes), job.recipe.hcp.pooling).train()
    network.dropout6.p = network.dropout7.p = 0.5
    for layer in network.trunk:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
            torch.nn.init.normal_(layer.bias)  # so that a filled-up border would not stay zero
    feed = train_hcp._Feed(job, network, torch.device("cpu"))
    feed.begin(phase, None)
    for part in parts:
        (feed.loss(part, epoch=3) * len(part) / sum(map(len, parts))).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("phase", ["image", "hypothesis"])
def test_gradients_of_two_workers_add_up_to_those_of_one(tiny_run, phase):
    job = open_run(tiny_run[1].root)
    batch = [(shard, i) for shard, ids in training.chosen(training.index(job.run, "proposals")) for i in ids][:6]
    sizes = {(row["height"], row["width"]) for row in job.run.rows("images")}
    assert len(sizes) > 3
    one = gradients(job, phase, [batch])
    two = gradients(job, phase, [batch[0::2], batch[1::2]])
    for name, gradient in one.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()), msg=name)


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO(run.read_bytes("hcp", "network.pt")), weights_only=True)


def test_one_and_two_workers_train_the_same_network(tiny_run, tiny, tmp_path):
    """On Ray Train, with the frozen trunk of the demo: its BatchNorm would see each worker's part of a batch."""
    found = []
    for workers in (1, 2):
        shutil.copytree(tiny_run[1].root, tmp_path / f"with-{workers}")
        run = RunDirectory.at(str(tmp_path / f"with-{workers}"))
        settings = [*tiny, "hcp.freeze=all", f"runtime.stages.train_hcp.max_workers={workers}"]
        pipeline.run(recipe.load("demo", settings), run.root, "train_hcp")
        found.append(weights(run))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_val_photos_are_scored_as_the_whole_photo(tiny_run):
    job = open_run(tiny_run[1].root)
    scorer = score._Scorer(job)
    rows = {row["image_id"]: row for row in job.run.rows("images")}
    (shard, *_) = job.run.shards("scores", "val")
    for image_id, row in job.run.read_good("scores", shard).items():
        assert rows[image_id]["split"] == "val" and len(row["scores"]) == len(row["candidate"]) == 0
        expected = scorer.photo_logits(score.add_photo(job, rows[image_id]))
        np.testing.assert_allclose(row["photo_logits"], expected, rtol=1e-5, atol=1e-6)
    found = job.run.read_json("metrics.json")["hcp"]
    precision = score.val_precision(job)
    assert found["ap"] == pytest.approx(precision, nan_ok=True)
    assert found["val_map"] == pytest.approx(np.mean([ap for ap in precision.values() if not math.isnan(ap)]))


def test_candidates_are_chosen_before_scores_are_rounded(tiny_run, monkeypatch):
    """0.50002 passes 0.5; in half precision, as it is stored, it is 0.5."""
    job = open_run(tiny_run[1].root)
    (shard, *_) = job.run.shards("proposals")
    row = score.add_photo(job, score._rows(job, shard, 1)[0])
    count = len(row["indptr"]) - 1
    scores = np.full((count, len(job.classes)), 0.3, np.float32)
    scores[0] = 0.50002
    embedding = np.random.default_rng(0).normal(size=(count, 128)).astype(np.float32)
    monkeypatch.setattr(score, "score_proposals", lambda *_: (scores, embedding))
    found = score._Scorer(job)(row)
    assert found["candidate"].tolist() == [0] * len(row["labels"]) and not found["fallback"].any()
    assert found["scores"].dtype == np.float16 and (found["scores"][:, 0] == 0.5).all()
