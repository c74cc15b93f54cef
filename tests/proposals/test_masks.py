import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from wsseg_ray.proposals import ProposalFileError, masks
from wsseg_ray.proposals.masks import _decompress

LEFT = np.array([[1, 1, 0], [1, 1, 0]], bool)
MIDDLE = np.array([[0, 1, 0], [0, 1, 0]], bool)
CORNER = np.array([[0, 0, 0], [0, 0, 1]], bool)
EMPTY = np.zeros((2, 3), bool)


def compressed(mask) -> dict:
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def plain(mask) -> dict:
    pixels = np.ravel(mask, order="F").astype(int)
    ends = np.flatnonzero(np.diff(pixels, prepend=0, append=2))
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def record(mask, write=compressed, **scores) -> dict:
    return {"segmentation": write(mask), **scores}


def dump(content) -> bytes:
    return json.dumps(content).encode()


def dense(regions) -> list:
    return [regions.mask(n).tolist() for n in range(len(regions))]


def runs(counts, size=(2, 3), **scores) -> bytes:
    return dump([{"segmentation": {"size": list(size), "counts": counts}, **scores}])


@pytest.mark.parametrize("write", [compressed, plain])
@pytest.mark.parametrize("wrap", [lambda records: records, lambda records: {"annotations": records, "info": {}}])
def test_best_first(write, wrap):
    records = [record(LEFT, write, score=0.2), record(CORNER, write, score=1), record(MIDDLE, write, score=0.5)]
    regions, objectness = masks.read(dump(wrap(records)), 10)
    assert dense(regions) == [CORNER.tolist(), MIDDLE.tolist(), LEFT.tolist()]
    assert objectness.dtype == np.float32
    np.testing.assert_array_equal(objectness, np.array([1, 0.5, 0.2], np.float32))
    assert len(regions.areas) == 4  # left without middle, middle, corner, nothing


def test_takes_the_best_and_keeps_the_order_of_equals():
    records = [record(LEFT, score=0.5), record(CORNER, score=0.9), record(MIDDLE, score=0.5)]
    regions, objectness = masks.read(dump(records), 2)
    assert dense(regions) == [CORNER.tolist(), LEFT.tolist()]
    assert objectness.tolist() == pytest.approx([0.9, 0.5])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([{"score": 0.1, "predicted_iou": 0.9}, {"score": 0.2, "predicted_iou": 0.1}], [0.2, 0.1]),
        ([{"score": 0.1, "predicted_iou": 0.9}, {"predicted_iou": 0.1}], [0.9, 0.1]),
        ([{"stability_score": 0.7, "score": 1}, {"stability_score": 0.8}], [0.8, 0.7]),
        ([{"score": 1}, {"predicted_iou": 1}], [4 / 6, 1 / 6]),
        ([{}, {}], [4 / 6, 1 / 6]),
    ],
)
def test_objectness_is_the_first_score_that_all_masks_have(scores, expected):
    records = [record(mask, **score) for mask, score in zip((LEFT, CORNER), scores, strict=True)]
    assert masks.read(dump(records), 10)[1].tolist() == pytest.approx(expected)


def test_empty_masks_are_dropped_and_take_no_place():
    records = [record(EMPTY, score=9), record(CORNER, score=1), record(EMPTY, plain, score=3), record(LEFT, score=2)]
    regions, objectness = masks.read(dump(records), 2)
    assert dense(regions) == [LEFT.tolist(), CORNER.tolist()] and objectness.tolist() == [2, 1]


def test_empty_runs_are_fine():
    regions, _ = masks.read(runs([0, 1, 0, 3, 2, 0, 0]), 10)  # down the columns: four pixels inside, two outside
    assert dense(regions) == [LEFT.tolist()]


def test_a_mask_of_the_whole_photo():
    regions, objectness = masks.read(runs([0, 6]), 10)
    assert regions.superpixels.tolist() == [[0] * 3] * 2 and objectness.tolist() == [1]


def test_the_same_mask_twice_is_two_proposals():
    assert masks.read(dump([record(LEFT), record(LEFT)]), 10)[0].membership.toarray().tolist() in (
        [[1, 0], [1, 0]],
        [[0, 1], [0, 1]],
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[" + b"1" * 5000 + b"]", "mask 0 has no|not JSON"),
        (b"3", "must be a list"),
        (b"{}", "must be a list"),
        (b'{"annotations": {}}', "must be a list"),
        (b"[]", "no masks"),
        (b'{"annotations": []}', "no masks"),
        (b"[null]", "mask 0 has no 'segmentation'"),
        (b"[{}]", "mask 0 has no 'segmentation'"),
        (b'[{"segmentation": {"size": [2, 3]}}]', "mask 0 has no 'segmentation'"),
        (b'[{"segmentation": [[0, 0, 1, 1, 1, 0]]}]', "mask 0 is a polygon"),
        (dump([record(LEFT), {}]), "mask 1 has no 'segmentation'"),
        (dump([record(LEFT), record(LEFT.T)]), "mask 1 is of another size"),
        (dump([record(EMPTY), record(EMPTY)]), "all masks are empty"),
        (runs([6], size=(2,)), "'size' must be"),
        (runs([6], size=(2, 0)), "'size' must be"),
        (runs([6], size=(-2, -3)), "'size' must be"),
        (runs([6], size=(2.0, 3.0)), "'size' must be"),
        (runs([6], size=(True, 6)), "'size' must be"),
        (runs([0, 10**10], size=(10**5, 10**5)), "more than 100000000 pixels"),
        (runs([2, 3]), "cover 5 pixels of 2 x 3"),
        (runs([]), "cover 0 pixels"),
        (runs([7]), "longer than the photo"),
        (runs([-1, 7]), "negative"),
        (runs([10**30]), "'counts' must be"),
        (runs([2.0, 4.0]), "'counts' must be"),
        (runs([True, 5]), "'counts' must be"),
        (runs(None), "'counts' must be"),
        (runs(""), "not COCO's compressed string"),
        (runs("o"), "not COCO's compressed string"),  # says "goes on", and ends
        (runs("24o"), "not COCO's compressed string"),
        (runs("2 4"), "not COCO's compressed string"),
        (runs("2p"), "not COCO's compressed string"),
        (runs("24\u00e9"), "not COCO's compressed string"),
        (runs("\ud800"), "not COCO's compressed string"),
        (runs("o" * 7 + "1"), "beyond any photo"),
        (runs("o" * 10**5 + "1"), "beyond any photo"),
        (runs("O7"), "negative"),
        (runs([2, 4], score="0.5"), "'score' must be"),
        (runs([2, 4], score=None), "'score' must be"),
        (runs([2, 4], score=True), "'score' must be"),
        (runs([2, 4], score=-0.1), "'score' must be"),
        (runs([2, 4], score=float("nan")), "'score' must be"),
        (runs([2, 4], score=float("inf")), "'score' must be"),
        (runs([2, 4], score=1e39), "'score' must be"),
        (runs([2, 4], score=10**400), "'score' must be"),
    ],
)
def test_says_what_is_wrong(data, message):
    with pytest.raises(ProposalFileError, match=message):
        masks.read(data, 10)


def test_refuses_too_many_cells():
    pixels = np.arange(300 * 300).reshape(300, 300)
    records = [record(pixels >> bit & 1 == 1) for bit in range(17)]
    with pytest.raises(ProposalFileError, match="65536 cells"):
        masks.read(dump(records), 17)


def test_a_large_photo_of_few_runs():
    regions, _ = masks.read(runs([1_000_000, 2_000_000, 3_000_000], size=(2000, 3000)), 10)
    assert regions.region_areas.tolist() == [2_000_000]
    assert regions.boxes.tolist() == [[500, 0, 1500, 2000]]


@settings(deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))), st.integers(1, 7))
def test_equals_the_dense_masks(stack, count):
    for write in (compressed, plain):
        data = dump([record(mask, write, score=n) for n, mask in enumerate(stack)])
        if not stack.any():
            with pytest.raises(ProposalFileError, match="empty"):
                masks.read(data, count)
            continue
        regions, objectness = masks.read(data, count)
        kept = [n for n in reversed(range(len(stack))) if stack[n].any()][:count]
        assert dense(regions) == stack[kept].tolist()
        assert objectness.tolist() == kept


@settings(deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40))
def test_decompressed_as_coco_compressed(counts):
    encoded = coco.frPyObjects({"size": [1, sum(counts)], "counts": counts}, 1, sum(counts))
    assert _decompress(encoded["counts"].decode(), 0).tolist() == counts


FILES = [dump([record(mask, write, score=0.5) for mask in (LEFT, MIDDLE, EMPTY)]) for write in (compressed, plain)] + [
    dump({"annotations": [record(np.eye(40, dtype=bool), predicted_iou=0.9, stability_score=1)]})
]


def reads_or_refuses(data: bytes) -> None:
    try:
        regions, objectness = masks.read(data, 10)
    except ProposalFileError as error:
        assert str(error)
    else:
        assert len(regions) == len(objectness) > 0


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(FILES), st.data())
def test_nothing_but_its_own_error_escapes_from_damaged_bytes(file, data):
    damaged = bytearray(file)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(
            st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789-.,[]{}"')),
        )
    reads_or_refuses(bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged))


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12) | st.text(max_size=6))
def test_nothing_but_its_own_error_escapes_from_damaged_runs(counts):
    reads_or_refuses(runs(counts))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([2, 3]) | st.just([2, 4]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["annotations", "segmentation", "size", "counts", "score"]), inner, max_size=4
        )
    ),
)


@settings(deadline=None, max_examples=200)
@given(JSON, st.fixed_dictionaries({"size": JSON, "counts": JSON}), JSON)
def test_nothing_but_its_own_error_escapes_from_other_json(content, segmentation, score):
    reads_or_refuses(dump(content))
    reads_or_refuses(dump([{"segmentation": segmentation, "score": score}]))
    reads_or_refuses(runs([2, 4], score=score))
