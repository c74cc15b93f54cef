import numpy as np
import torch

from tests.runs import copy, ran
from wsseg_ray import recipe
from wsseg_ray.engine.local import LocalRunner
from wsseg_ray.engine.stage import open_run
from wsseg_ray.segmentation.losses import class_weights
from wsseg_ray.stages import balance
from wsseg_ray.tables import PROPOSALS, SUPERVISION


def balanced(run):
    """The run's job, with other weights of classes."""
    job = open_run(run)
    segmentation = job.recipe.segmentation.model_copy(update={"balance": 0.5})
    object.__setattr__(job, "recipe", job.recipe.model_copy(update={"segmentation": segmentation}))
    return job


def test_weights_come_from_the_pixels_of_the_masks(tiny_local, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    job = balanced(run)
    regions = {row.image_id: row for row in run.rows(PROPOSALS)}
    expected = np.zeros(256, np.int64)
    for row in run.rows(SUPERVISION):
        for value in row.mask[regions[row.image_id].superpixels].ravel():
            expected[value] += 1
    balance.count(job, LocalRunner())
    assert run.read_json("segmenters", balance.FILE) == expected[: len(job.classes) + 1].tolist()
    assert torch.equal(balance.weights(job), class_weights(expected[: len(job.classes) + 1].tolist(), 0.5))


def test_where_all_weigh_the_same_nothing_is_counted(tiny_local):
    job = open_run(tiny_local[1])
    balance.count(job, LocalRunner())
    assert balance.weights(job) is None and not job.run.exists("segmenters", balance.FILE)


def test_networks_that_learn_from_masks_change_and_others_do_not(tiny_local, tiny, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    settings = [*tiny, "runtime.engine=local", "segmentation.balance=0.5"]
    run = ran(recipe.load("demo", settings), run, "train_segmenter")
    for name, same in (("AN_A", True), ("SN_B", False)):
        files = [place.read_bytes("segmenters", name, "network.pt") for place in (run, tiny_local[1])]
        assert (files[0] == files[1]) == same, name
