import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsseg_ray.hcp.hypotheses import CANDIDATES, box_iou, select_hypotheses


def test_box_iou():
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 2, 4, 4], [5, 5, 5, 9]])
    assert box_iou(boxes).tolist() == [[1, 1 / 3, 0, 0], [1 / 3, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert box_iou(np.empty((0, 4), np.int64)).shape == (0, 0)


def groups(centres: list[int], each: int) -> np.ndarray:
    """Boxes of 50 px in groups far apart, each box moved by a pixel."""
    return np.array([[c + i, 0, c + i + 50, 50] for c in centres for i in range(each)])


def test_the_best_of_every_cluster():
    boxes = groups([0, 200, 400, 600], each=5)
    scores = np.zeros(20)
    scores[[3, 5, 14, 16]] = 1
    assert select_hypotheses(boxes, scores, count=4, min_area=0).tolist() == [3, 5, 14, 16]


def test_small_and_long_boxes_are_dropped():
    boxes = np.array([[0, 0, 29, 30], [0, 0, 30, 30], [0, 0, 121, 30], [0, 0, 120, 30], [0, 0, 0, 99]])
    assert select_hypotheses(boxes, np.ones(5)).tolist() == [1, 3]
    assert select_hypotheses(boxes, np.ones(5), min_area=10**6).tolist() == [0, 1, 2, 3, 4]


def test_only_the_first_boxes_take_part():
    boxes = np.concatenate([groups([0, 900], each=CANDIDATES // 2), groups([2000], each=50)])
    scores = np.arange(len(boxes))
    assert select_hypotheses(boxes, scores, count=2, min_area=0).tolist() == [CANDIDATES // 2 - 1, CANDIDATES - 1]


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize(
    "boxes",
    [
        np.empty((0, 4), np.int64),
        np.array([[0, 0, 40, 40]]),
        np.tile([[0, 0, 50, 50]], (30, 1)),
        np.zeros((30, 4), np.int64),
        groups([0, 1000, 2000], each=10),
        groups(list(range(0, 3000, 100)), each=1),
    ],
    ids=["none", "one", "identical", "empty", "three groups", "apart"],
)
def test_degenerate_boxes(boxes, count):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = select_hypotheses(boxes, np.arange(len(boxes)), count=count, min_area=0)
        again = select_hypotheses(boxes, np.arange(len(boxes)), count=count, min_area=0)
    assert chosen.tolist() == again.tolist() == sorted(set(chosen.tolist()))
    assert min(1, len(boxes)) <= len(chosen) <= min(count, len(boxes))
    if len(boxes):
        assert chosen[-1] == len(boxes) - 1  # the best-scored box is the best of its cluster


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 12))
def test_chosen_boxes_are_candidates_and_include_the_best(seed, size, count):
    rng = np.random.default_rng(seed)
    corners = rng.integers(100, size=(size, 2))
    boxes = np.hstack([corners, corners + rng.integers(0, 60, size=(size, 2))])
    scores = rng.random(size)
    chosen = select_hypotheses(boxes, scores, count)
    assert len(chosen) <= count and (np.diff(chosen) > 0).all()
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    fits = (width * height >= 900) & (width <= 4 * height) & (height <= 4 * width)
    if fits.any():
        assert fits[chosen].all() and np.flatnonzero(fits)[scores[fits].argmax()] in chosen
