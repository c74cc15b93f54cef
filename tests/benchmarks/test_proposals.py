import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.proposals import COUNTS, found_by, from_partitions, quadtree
from wsseg_ray.evaluation.objects import NOT_COUNTED

MAPS = st.lists(hnp.arrays(np.int64, (4, 5), elements=st.integers(0, 6)), min_size=1, max_size=4)


@given(MAPS)
def test_partitions_keep_every_segment_in_order(maps):
    maps = [np.unique(labels, return_inverse=True)[1].reshape(labels.shape) for labels in maps]
    regions = from_partitions(maps)
    segments = [labels == segment for labels in maps for segment in range(labels.max() + 1)]
    np.testing.assert_array_equal([regions.mask(n) for n in range(len(regions))], segments)
    assert len(regions.areas) == len(np.unique(np.stack(maps).reshape(len(maps), -1), axis=1).T)


def test_quadtree():
    regions, _ = quadtree(np.zeros((4, 6, 3), np.uint8))
    assert len(regions) == 1 + 4 + 16
    assert regions.boxes[:5].tolist() == [[0, 0, 6, 4], [0, 0, 3, 2], [3, 0, 6, 2], [0, 2, 3, 4], [3, 2, 6, 4]]
    assert regions.region_areas[5:9].tolist() == [2, 1, 2, 1]
    assert len(quadtree(np.zeros((64, 96, 3), np.uint8))[0]) == 1365


def test_boxes_and_regions_are_matched_with_their_own_kind():
    labels = np.zeros((4, 4), np.int32)
    labels[:2, 0] = labels[0, :2] = 1  # three of the four pixels of its box
    labels[3, 3] = NOT_COUNTED
    regions = from_partitions([np.zeros((4, 4), int), np.arange(4)[:, None] // 2 * 2 + np.arange(4) // 2])
    found = found_by(regions, labels)
    assert found["regions"].tolist() == [[3 / 4]] * (len(COUNTS) + 1)
    assert found["boxes"].tolist() == [[1]] * (len(COUNTS) + 1)
    assert found_by(regions.top(1), labels)["regions"][0].tolist() == [3 / 15]
    assert found_by(regions.top(1).boxes, labels)["boxes"][0].tolist() == [4 / 16]
    assert found_by(np.empty((0, 4)), labels)["boxes"].tolist() == [[0]] * (len(COUNTS) + 1)
    assert found_by(regions, np.zeros((4, 4), np.int32))["boxes"].shape == (len(COUNTS) + 1, 0)
