import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from wsseg_ray.hcp.hypotheses import LINK, box_iou, normalized_cut, select_hypotheses


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
    boxes = groups([0, 900, 2000], each=50)
    scores = np.arange(150)
    assert select_hypotheses(boxes, scores, count=2, min_area=0, clustered=100).tolist() == [49, 99]
    assert select_hypotheses(boxes, scores, count=2, min_area=0, clustered=2).tolist() == [0, 1]
    many = np.repeat(groups([0, 900], each=1), [299, 2], axis=0)
    assert select_hypotheses(many, np.arange(301), count=2, min_area=0).tolist() == [298, 299]


def random_boxes(size: int) -> np.ndarray:
    corners = np.random.default_rng(size).integers(100, size=(size, 2))
    return np.hstack([corners, corners + np.random.default_rng(0).integers(1, 60, size=(size, 2))])


DEGENERATE = {
    "none": np.empty((0, 4), np.int64),
    "one": np.array([[0, 0, 40, 40]]),
    "identical": np.tile([[0, 0, 50, 50]], (30, 1)),
    "empty": np.zeros((30, 4), np.int64),
    "three groups": groups([0, 1000, 2000], each=10),
    "apart": groups(list(range(0, 3000, 100)), each=1),
    "grid": np.array([[x, y, x + 50, y + 50] for x in range(0, 200, 25) for y in range(0, 200, 25)]),
}
SEVERAL = {name: boxes for name, boxes in DEGENERATE.items() if len(boxes) > 10}
SEVERAL |= {f"random {size}": random_boxes(size) for size in (11, 50, 300)}


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("boxes", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_boxes(boxes, count):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = select_hypotheses(boxes, np.arange(len(boxes)), count=count, min_area=0)
        again = select_hypotheses(boxes, np.arange(len(boxes)), count=count, min_area=0)
    assert chosen.tolist() == again.tolist() == sorted(set(chosen.tolist()))
    assert min(1, len(boxes)) <= len(chosen) <= min(count, len(boxes))
    if len(boxes):
        assert chosen[-1] == len(boxes) - 1  # the best-scored box is the best of its cluster


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("boxes", SEVERAL.values(), ids=SEVERAL)
def test_memory_and_threads_do_not_matter(boxes, count):
    scores = np.arange(len(boxes))
    chosen = select_hypotheses(boxes, scores, count, min_area=0).tolist()
    strided = np.repeat(np.repeat(boxes, 2, axis=0), 3, axis=1)[::2, ::3]
    shifted = np.frombuffer(b"x" + boxes.tobytes(), np.uint8)[1:].view(boxes.dtype).reshape(boxes.shape)
    for same_boxes in (np.asfortranarray(boxes), strided, shifted, boxes.astype(np.float64)):
        for threads in (1, 2):
            with threadpool_limits(threads):
                assert select_hypotheses(same_boxes, scores, count, min_area=0).tolist() == chosen


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("boxes", SEVERAL.values(), ids=SEVERAL)
def test_rounding_does_not_decide(boxes, count):
    """Another machine rounds otherwise: a thousand times as coarsely here."""
    affinity = box_iou(boxes) + LINK
    clusters = normalized_cut(affinity, count).tolist()
    for seed in range(3):
        noise = np.random.default_rng(seed).uniform(-1e-13, 1e-13, affinity.shape)
        assert normalized_cut(affinity * (1 + noise + noise.T), count).tolist() == clusters


def test_cut_of_two_blocks():
    affinity = np.kron(np.eye(2), np.ones((3, 3))) + LINK
    left, right = normalized_cut(affinity, 2).reshape(2, 3)
    assert len(set(left)) == len(set(right)) == 1 and left[0] != right[0]
    assert normalized_cut(affinity, 1).tolist() == [0] * 6


@settings(max_examples=30)
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
