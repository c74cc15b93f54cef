import numpy as np

from wsseg_ray.recipe import VOC_CLASSES
from wsseg_ray.report import paper
from wsseg_ray.segmentation.networks import NETWORKS


def test_the_table_is_complete_and_its_columns_have_the_printed_means():
    assert list(paper.VAL_IOU) == ["background", *VOC_CLASSES]
    means = np.mean(list(paper.VAL_IOU.values()), axis=0)
    # the paper's means of AN_A and SN_A are 0.1 above those of its own rows
    np.testing.assert_allclose(means, [39.6, 40.5, 40.6, 41.9], atol=0.05)
    np.testing.assert_allclose(means, list(paper.VAL_MIOU.values()), atol=0.12)


def test_rows_of_some_classes_end_in_their_own_mean():
    background, cat, dog, mean = paper.val_rows(["cat", "dog"])
    assert background == (69.4, 74.6, 81.0, 80.7)
    assert (cat[3], dog[3]) == (48.0, 54.6)
    np.testing.assert_allclose(mean[3], (80.7 + 48.0 + 54.6) / 3)


def test_rows_of_all_classes_end_in_the_printed_mean():
    assert paper.val_rows(VOC_CLASSES)[-1] == (39.7, 40.6, 40.6, 41.9)


def test_the_columns_are_the_papers_networks():
    assert set(paper.NETWORKS) == {n.name for n in NETWORKS.variants() if n.kind == "paper"}


def test_the_rivals_means_are_those_of_their_rows():
    means = np.mean(list(paper.RIVALS_VAL_IOU.values()), axis=0)
    printed = [paper.RIVALS_VAL_MIOU[name] for name in paper.RIVALS_BY_CLASS]
    np.testing.assert_allclose(means, printed, atol=0.1)
    assert set(paper.RIVALS_VAL_MIOU) == {n.name for n in NETWORKS.variants() if n.kind == "rival"}
    assert paper.rival_val("CCNN", ["cat"]) == (65.9 + 47.0) / 2
    assert paper.rival_val("MIL_FCN", ["cat"]) is None and paper.rival_val("MIL_FCN", VOC_CLASSES) == 25.7
