import numpy as np
import torch

from wsseg_ray.segmentation.inference import View
from wsseg_ray.stages.job import open_run
from wsseg_ray.stages.relabel import own_labels


def test_only_the_photos_own_classes_are_seen(tiny_run):
    job = open_run(tiny_run[1].root)
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    logits = torch.from_numpy(rng.normal(size=(len(job.classes) + 1, 10, 13)).astype(np.float32))
    logits[1] += 20  # the network is sure of a class that the photo does not have
    views = [View(logits, (40, 50), 4, False)]
    for round_ in (1, 2):
        names = ["SN_B", "ILP_SEG", "CAM"]
        for name, seen in zip(names, own_labels(job, names, round_, photo, [views] * 3, np.array([2, 4])), strict=True):
            assert seen.shape == (40, 50) and seen.dtype == np.uint8
            assert set(np.unique(seen)) <= {0, 2, 4}, name


def test_the_first_labels_of_cam_are_its_maps(tiny_run):
    job = open_run(tiny_run[1].root)
    photo = np.full((40, 40, 3), 90, np.uint8)
    photo[:, 20:] = 200
    logits = torch.full((len(job.classes) + 1, 5, 5), -1.0)
    logits[3, :, 3:] = 5
    (seen,) = own_labels(job, ["CAM"], 1, photo, [[View(logits, (40, 40), 8, False)]], np.array([3]))
    assert (seen[:, 30:] == 3).all() and (seen[:, :10] == 0).all()
