"""Predictions: what travels from an actor to the tasks, and the files that a person hands in."""

from __future__ import annotations

import io
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.runs import copy
from wsseg_ray import recipe
from wsseg_ray.backbones.photos import normalise
from wsseg_ray.datasets import demo
from wsseg_ray.engine.stage import Job, open_run
from wsseg_ray.evaluation import iou
from wsseg_ray.segmentation.inference import View, photo_views
from wsseg_ray.segmentation.networks import NETWORKS
from wsseg_ray.stages.predict import STAGE, agreement
from wsseg_ray.stages.predictor import (
    Predictor,
    RememberingBackbone,
    ViewsRow,
    packed,
    seen_rows,
    trained_networks,
    unpacked,
)
from wsseg_ray.stages.rows import add_photo, truth_of
from wsseg_ray.stages.segmenters import trained
from wsseg_ray.tables import IMAGES, PREDICTIONS, decode, encode


def test_a_shared_backbone_looks_once_at_a_photo():
    seen = []
    inner = nn.Identity()
    inner.channels = {"out": 3}
    inner.register_forward_hook(lambda *_: seen.append(1))
    backbone = RememberingBackbone(inner)
    one, other = torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    answers = [backbone(photo) for photo in (one, one, other, one)]
    assert len(seen) == 3 and [int(answer.max()) for answer in answers] == [1, 1, 0, 1]


def test_every_network_says_of_a_photo_what_it_says_alone(tiny_local):
    """With several views, of which some are other tensors and some are not."""
    job = open_run(tiny_local[1])
    row = add_photo(job, seen_rows(job, job.run.shards("images", "val")[0])[0])
    views = {"scales": [1.0, 0.5], "mirror": True}
    for freeze in ("none", "all"):
        segmentation = job.recipe.segmentation.model_dump() | {"freeze": freeze}
        frozen = recipe.validate(job.recipe.model_dump() | {"segmentation": segmentation})
        networks = [NETWORKS.get("SN_B")] * (1 if freeze == "none" else 2)
        load = partial(trained_networks, networks, None)
        answers = unpacked(Predictor(load, views, Job(job.run, frozen, job.listing))(row))
        network = trained(job, networks[0])
        (alone,) = photo_views([network], normalise(row.photo, network.mean, network.std), **views)
        assert len(answers) == len(networks)
        for answer in answers:
            assert [view[1:] for view in answer] == [view[1:] for view in alone]
            assert all(torch.equal(view.logits, own.logits) for view, own in zip(answer, alone, strict=True))


def test_views_travel_in_a_row():
    """Of unlike sizes, of two networks."""
    views = [
        [View(torch.rand(3, 4, 5), (33, 40), 8, False), View(torch.rand(3, 4, 5), (33, 40), 8, True)],
        [View(torch.rand(2, 1, 7), (8, 50), 8, False)],
    ]
    (row,) = decode(ViewsRow, encode(ViewsRow, [ViewsRow("a", **packed(views))]))
    found = unpacked(row)
    assert [len(own) for own in found] == [2, 1]
    for own, expected in zip(found, views, strict=True):
        for view, known in zip(own, expected, strict=True):
            assert view[1:] == known[1:] and torch.equal(view.logits, known.logits)


def test_predictions_are_a_voc_submission(tiny_local):
    run = tiny_local[1]
    folder = ("predictions", "SN_B", "results", "VOC2012", "Segmentation", "comp6_val_cls")
    sizes = {row.image_id: (row.width, row.height) for row in run.rows(IMAGES) if row.split == "val"}
    assert run.names(*folder) == sorted(f"{image_id}.png" for image_id in sizes)
    for image_id, size in sizes.items():
        with Image.open(io.BytesIO(run.read_bytes(*folder, f"{image_id}.png"))) as labels:
            assert labels.mode == "P" and labels.size == size
            assert np.asarray(labels).max() <= len(demo.CLASSES)
    with zipfile.ZipFile(io.BytesIO(run.read_bytes("predictions", "SN_B", "results.zip"))) as archive:
        place = "/".join(folder[2:])
        assert archive.namelist() == [f"{place}/{image_id}.png" for image_id in sorted(sizes)]
        first = min(sizes)
        assert archive.read(f"{place}/{first}.png") == run.read_bytes(*folder, f"{first}.png")


def test_the_gallery_holds_the_photos_of_the_best_network_by_their_own_miou(tiny_local):
    """All of the demo's photos: it has fewer than a gallery may have."""
    job = open_run(tiny_local[1])
    val = tiny_local[1].read_json("metrics.json")["networks"]
    best = max((name for name in val if name != "FULL"), key=lambda name: val[name]["val"]["miou_crf"])
    gallery = [strip for strip in STAGE.strips(job) if strip.score is not None]
    images = {row.image_id: row for row in job.run.rows(IMAGES)}
    assert {strip.image_id for strip in gallery} == {name for name, row in images.items() if row.split == "val"}
    for strip in gallery:
        ((name, labels),) = strip.predictions
        assert name == f"{best} + CRF"
        true = truth_of(job, images[strip.image_id])
        assert strip.score == iou.miou(iou.confusion(labels, true, len(job.classes) + 1))
    scores = [strip.score for strip in gallery]
    assert scores == sorted(scores)


def test_without_true_masks_the_gallery_compares_with_the_names(tiny_local, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    for shard in run.shards("predictions"):
        rows = run.read_shard(PREDICTIONS, shard)
        for row in rows:
            row.confusion = np.zeros(0, np.int64)
        run.write_shard(PREDICTIONS, shard, rows)
    gallery = [strip for strip in STAGE.strips(open_run(run)) if strip.score is not None]
    assert {strip.measure for strip in gallery} == {"agreement"}
    scores = [strip.score for strip in gallery]
    assert scores == sorted(scores)
    images = {row.image_id: row for row in run.rows(IMAGES)}
    rows = {row.image_id: row for row in run.rows(PREDICTIONS)}
    for strip in gallery:
        labels = np.asarray(Image.open(io.BytesIO(rows[strip.image_id].png_crf[0])))
        assert strip.score == agreement(labels, images[strip.image_id].labels)


def test_agreement_with_the_names():
    labels = np.zeros((20, 20), np.uint8)
    assert agreement(labels, np.array([0])) == 0, "it shows none of the names"
    labels[:10] = 1
    assert agreement(labels, np.array([0])) == 100
    assert agreement(labels, np.array([0, 2])) == pytest.approx(50), "the second name is missing"
    assert agreement(labels, np.array([1])) == 0
    labels[10:] = 2
    assert agreement(labels, np.array([0])) == pytest.approx(50), "a class too many"
    labels[10:] = 0
    labels[0, 0] = labels[0, 1] = 2  # half of the share from which on a class counts
    assert agreement(labels, np.array([0])) == pytest.approx(100 / 1.5)
