"""What networks see in training photos: only the photo's own classes, and CAM first its activation maps."""

import numpy as np
import torch

from tests.runs import empty_job
from wsseg_ray.segmentation.inference import View
from wsseg_ray.segmentation.networks import NETWORKS
from wsseg_ray.stages.relabel import labels_of, stage
from wsseg_ray.tables import own_labels

CLASSES = ("a", "b", "c", "d", "e", "f")


def test_only_the_photos_own_classes_are_seen(tmp_path):
    job = empty_job(tmp_path, "crf.iterations=2", classes=CLASSES)
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    logits = torch.from_numpy(rng.normal(size=(len(CLASSES) + 1, 10, 13)).astype(np.float32))
    logits[1] += 20  # the network is sure of a class that the photo does not have
    views = [View(logits, (40, 50), 4, False)]
    networks = [NETWORKS.get(name) for name in ("SN_B", "ILP_SEG", "CAM")]
    for round_ in (1, 2):
        seen = labels_of(job, networks, round_, photo, [views] * 3, np.array([2, 4]))
        for network, labels in zip(networks, seen, strict=True):
            assert labels.shape == (40, 50) and labels.dtype == np.uint8
            assert set(np.unique(labels)) <= {0, 2, 4}, network.name


def test_the_first_labels_of_cam_are_its_maps(tmp_path):
    job = empty_job(tmp_path, classes=CLASSES)
    photo = np.full((40, 40, 3), 90, np.uint8)
    photo[:, 20:] = 200
    logits = torch.full((len(CLASSES) + 1, 5, 5), -1.0)
    logits[3, :, 3:] = 5
    views = [View(logits, (40, 40), 8, False)]
    (seen,) = labels_of(job, [NETWORKS.get("CAM")], 1, photo, [views], np.array([3]))
    assert (seen[:, 30:] == 3).all() and (seen[:, :10] == 0).all()


def test_each_round_is_a_stage():
    first, second = stage(1), stage(2)
    assert (first.name, first.writes, first.table) == ("relabel-1", "labels-1", own_labels(1))
    assert "segmenters" in first.reads and "segmenters-1" in second.reads and second.name == "relabel-2"
    assert first.again is not None and first.again(2) is second and first.first_round == 1
