import numpy as np
import pytest
import torch
from scipy import sparse

from tests.hcp.reference import pool_photo, pool_regions
from wsseg_ray.hcp.network import HypothesisNetwork
from wsseg_ray.hcp.pooling import POOLINGS
from wsseg_ray.hcp.scoring import (
    choose_candidates,
    flatten_candidates,
    pool_photos,
    score_proposals,
)
from wsseg_ray.proposals.regions import RegionProposals


def test_candidates_pass_the_threshold_best_first():
    scores = np.array([[0.6, 0.2, 0.9, 0.5], [0.1, 0.3, 0.2, 0.0]])
    chosen, fallback = choose_candidates(scores, 0.5, 2)
    assert [candidates.tolist() for candidates in chosen] == [[2, 0], [1, 2]]
    assert fallback.tolist() == [False, True]
    candidate, label = flatten_candidates(chosen, [4, 7])
    assert candidate.tolist() == [2, 0, 1, 2] and label.tolist() == [4, 4, 7, 7]


def test_fewer_proposals_than_the_fall_back_asks_for():
    chosen, fallback = choose_candidates(np.zeros((1, 3)), 0.5, 10)
    assert chosen[0].tolist() == [0, 1, 2] and fallback.all()


@pytest.mark.parametrize("pooling", POOLINGS.names)
def test_scores_are_distributions_and_the_whole_photo_is_a_region(pooling, regions, squared):
    torch.manual_seed(0)
    network = HypothesisNetwork("small", 5, pooling).eval()
    photo = torch.randn(3, 40, 48)
    scores, embedding = score_proposals(network, photo, regions, squared)
    assert scores.shape == (3, 5) and embedding.shape == (3, network.embedding_dims)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    if pooling != "roi":  # RoIAlign samples two points a cell, where the whole photo's cells are averaged
        with torch.no_grad():
            whole, first = pool_photo(network, photo)[0], pool_regions(network, photo, regions)[0]
        torch.testing.assert_close(whole, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS.names)
def test_scores_do_not_depend_on_how_many_rows_go_through_fc_together(pooling, regions, squared, monkeypatch):
    network = HypothesisNetwork("small", 2, pooling).eval()
    photo = torch.randn(3, 40, 48)
    together = score_proposals(network, photo, regions, squared)
    inputs = network.head.fc6.in_features
    monkeypatch.setattr("wsseg_ray.hcp.pooling.MAX_NUMBERS", 2 * inputs)
    rows = []
    embed = network.embed
    monkeypatch.setattr(network, "embed", lambda pooled: rows.append(len(pooled)) or embed(pooled))
    for apart, whole in zip(score_proposals(network, photo, regions, squared), together, strict=True):
        np.testing.assert_allclose(apart, whole, rtol=1e-5, atol=1e-6)
    assert rows == ([3] if network.pooling.needs_photo else [2, 1])


@pytest.mark.parametrize("pooling", POOLINGS.names)
def test_half_precision_changes_scores_by_little(pooling, regions, squared):
    torch.manual_seed(0)
    network = HypothesisNetwork("small", 3, pooling).eval()
    photo = torch.randn(3, 40, 48)
    expected, _ = score_proposals(network, photo, regions, squared)
    with torch.autocast("cpu", torch.bfloat16):
        scores, embedding = score_proposals(network, photo, regions, squared)
    assert scores.dtype == embedding.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=0.02)
    assert (scores != expected).any()


@pytest.mark.parametrize("pooling", ["roi", "segment"])
def test_a_photo_without_a_proposal_has_no_scores(pooling, regions, squared):
    network = HypothesisNetwork("small", 2, pooling).eval()
    scores, embedding = score_proposals(network, torch.randn(3, 40, 48), regions.top(0), squared)
    assert scores.shape == (0, 2) and embedding.shape == (0, network.embedding_dims)


def out_of_memory_once(network, monkeypatch) -> list[torch.device]:
    """Lets the first pass of the backbone fail as on a full GPU; the devices of all passes."""
    devices, features = [], network.features

    def first_fails(photos):
        devices.append(photos.device)
        if len(devices) == 1:
            raise torch.cuda.OutOfMemoryError("no room")
        return features(photos)

    monkeypatch.setattr(network, "features", first_fails)
    return devices


@pytest.mark.parametrize("pooling", ["roi", "segment"])
def test_a_photo_too_large_for_the_gpu_goes_through_the_backbone_on_the_cpu(pooling, regions, squared, monkeypatch):
    network = HypothesisNetwork("small", 2, pooling).eval()
    photo = torch.randn(3, 40, 48)
    expected = score_proposals(network, photo, regions, squared)
    devices = out_of_memory_once(network, monkeypatch)
    for found, wanted in zip(score_proposals(network, photo, regions, squared), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert devices == [torch.device("cpu")] * 2
    assert next(network.backbone.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_training_is_told_that_memory_ran_out(regions, monkeypatch):
    network = HypothesisNetwork("small", 2, "segment")
    out_of_memory_once(network, monkeypatch)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        pool_regions(network, torch.randn(3, 40, 48), regions)


SIZES = [(40, 48), (48, 40), (40, 48), (33, 64)]


@pytest.mark.parametrize("pooling", POOLINGS.names)
@pytest.mark.parametrize("whole", [True, False])
def test_a_photo_pools_the_same_alone_and_in_any_batch(pooling, whole):
    """Filled up to the largest photo of a batch, a photo would have other features near its border."""
    torch.manual_seed(0)
    network = HypothesisNetwork("small", 2, pooling).eval()
    for layer in network.backbone:  # biases that are not zero, as in a network that has learned
        if getattr(layer, "bias", None) is not None:
            torch.nn.init.normal_(layer.bias)
    photos = [torch.randn(3, *size) for size in SIZES]
    regions = [None if whole else quarters(*size) for size in SIZES]
    with torch.no_grad():
        together = pool_photos(network, photos, None if whole else regions)
        for photo, own, pooled in zip(photos, regions, together, strict=True):
            (alone,) = pool_photos(network, [photo], None if whole else [own])
            torch.testing.assert_close(pooled, alone, rtol=1e-4, atol=1e-5)
            if not whole:
                torch.testing.assert_close(pooled, pool_regions(network, photo, own), rtol=1e-4, atol=1e-5)


def quarters(height: int, width: int) -> RegionProposals:
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    membership = sparse.csr_array(np.array([[1, 1, 0, 0], [0, 0, 0, 1]], np.float32))
    return RegionProposals(2 * rows[:, None] + columns, membership)


def test_classes_and_means_of_regions_are_float32_under_half_precision(regions):
    """In bfloat16 a logit near 8 has steps of 0.06: laptop and cluster would choose other candidates at 0.5."""
    torch.manual_seed(0)
    network = HypothesisNetwork("small", 3, "context").eval()
    embedding, feature_map = torch.rand(4, network.embedding_dims) * 20, torch.rand(96, 10, 12)
    with torch.no_grad():
        logits, (pooled,) = network.classify(embedding), network.pooling.chunks(network, feature_map, regions)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network.classify(embedding), logits)
            assert torch.equal(next(network.pooling.chunks(network, feature_map, regions)), pooled)
