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


def test_equal_masks_are_one_proposal_however_they_are_written():
    again = {"segmentation": {"size": [2, 3], "counts": [0, 1, 0, 3, 2, 0, 0]}, "score": 0.9}
    records = [record(LEFT, score=0.2), record(MIDDLE, score=0.5), again, record(LEFT, plain, score=0.9)]
    for count in (2, 10):
        regions, objectness = masks.read(dump(records), count)
        assert dense(regions) == [LEFT.tolist(), MIDDLE.tolist()]
        np.testing.assert_array_equal(objectness, np.array([0.9, 0.5], np.float32))


def test_runs_that_end_empty_at_the_end_of_the_photo():
    for counts in ([0, 6], [0, 6, 0], [0, 6, 0, 0], [0, 2, 0, 4]):
        regions, objectness = masks.read(runs(counts), 10)
        assert dense(regions) == [np.ones((2, 3), bool).tolist()] and objectness.tolist() == [1]


HEIGHT, WIDTH = 375, 500


def sam_masks(count: int) -> np.ndarray:
    """Overlapping ellipses, parts inside wholes, some beyond the photo's border, (N, H, W) bool, no two equal."""
    random = np.random.default_rng(0)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    y, x = random.uniform(0, HEIGHT, count), random.uniform(0, WIDTH, count)
    tall, wide = random.uniform(4, 90, count), random.uniform(4, 120, count)
    inside = np.stack([((ys - y[n]) / tall[n]) ** 2 + ((xs - x[n]) / wide[n]) ** 2 <= 1 for n in range(count)])
    inside[0] = True
    inside[1] = inside[2:5].any(axis=0)  # of several parts
    inside[2] &= ~inside[3]  # with a hole, or a bite
    return inside


def sam_record(mask, write, predicted_iou, **wrong) -> dict:
    """The keys of SAM's automatic mask generator, in its order."""
    x, y, width, height = coco.toBbox(coco.encode(np.asfortranarray(mask, np.uint8))).tolist()
    return {
        "segmentation": write(mask),
        "area": int(mask.sum()),
        "bbox": [x, y, width - 1, height - 1],
        "predicted_iou": predicted_iou,
        "point_coords": [[x + 0.5, y + 0.5]],
        "stability_score": 2 - predicted_iou,
        "crop_box": [0, 0, WIDTH, HEIGHT],
    } | wrong


@pytest.fixture(scope="module")
def sam() -> tuple[np.ndarray, np.ndarray]:
    ious = np.random.default_rng(1).permutation(np.linspace(0.88, 1.03, 400))  # SAM's estimate is not cut at 1
    return sam_masks(400), ious


def as_sa1b(records) -> dict:
    image = {"image_id": 1, "width": WIDTH, "height": HEIGHT, "file_name": "sa_1.jpg"}
    return {"image": image, "annotations": [{"id": n, **record} for n, record in enumerate(records)]}


@pytest.mark.parametrize("write", [compressed, plain])
@pytest.mark.parametrize("wrap", [list, as_sa1b])
def test_hundreds_of_masks_as_sam_writes_them(sam, write, wrap):
    stack, ious = sam
    records = [sam_record(mask, write, iou) for mask, iou in zip(stack, ious, strict=True)]
    regions, objectness = masks.read(dump(wrap(records)), 2000)
    best_first = np.argsort(-ious)
    assert len(regions) == 400
    for n, expected in enumerate(stack[best_first]):
        assert (regions.mask(n) == expected).all()
    np.testing.assert_array_equal(objectness, ious[best_first].astype(np.float32))
    np.testing.assert_array_equal(regions.region_areas, stack[best_first].sum(axis=(1, 2)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bbox": [-50, -50, 10_000, 10_000], "area": -1, "crop_box": [0, 0, 1, 1]},
        {"bbox": "no", "area": float("nan"), "point_coords": None, "stability_score": None},
    ],
)
def test_what_sam_says_beside_the_mask_is_not_trusted(sam, wrong):
    records = [sam_record(mask, compressed, iou, **wrong) for mask, iou in zip(*sam, strict=True)][:3]
    regions, _ = masks.read(dump(records), 10)
    assert sorted(regions.region_areas) == sorted(sam[0][:3].sum(axis=(1, 2)))


def test_the_best_of_sams_masks_without_the_empty_and_the_equal(sam):
    stack = np.concatenate([sam[0][:20], sam[0][:20], np.zeros((5, HEIGHT, WIDTH), bool)])
    ious = np.linspace(0.5, 1, 45)  # the empty ones best, then the second of each two
    records = [sam_record(mask, compressed, iou) for mask, iou in zip(stack, ious, strict=True)]
    regions, objectness = masks.read(dump(records), 15)
    for n, expected in enumerate(stack[39:24:-1]):
        assert (regions.mask(n) == expected).all()
    np.testing.assert_array_equal(objectness, ious[39:24:-1].astype(np.float32))


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
        (dump([{"segmentation": LEFT.tolist()}]), "list of pixels.* output_mode='coco_rle'"),  # SAM's "binary_mask"
        (dump([{"segmentation": LEFT.astype(int).tolist()}]), "list of pixels.* output_mode='coco_rle'"),
        (dump([record(LEFT), {"segmentation": LEFT.tolist()}]), "mask 1 is a polygon or a list of pixels"),
        (dump([{"segmentation": str(LEFT)}]), "mask 0 has no 'segmentation'"),
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
        (runs("o" * 7 + "1"), "larger than any photo"),
        (runs("o" * 10**5 + "1"), "larger than any photo"),
        (runs("O7"), "negative"),
        (
            runs(str(coco.encode(np.asfortranarray(LEFT, np.uint8))["counts"])),
            "not COCO's compressed string",
        ),  # "b'...'"
        (runs(compressed(np.ones((3, 3)))["counts"]), "longer than the photo"),
        (runs(compressed(np.eye(3))["counts"]), "cover 9 pixels of 2 x 3"),
        (runs([2, 4], score="0.5"), "'score' must be"),
        (runs([2, 4], score=None), "'score' must be"),
        (runs([2, 4], score=True), "'score' must be"),
        (runs([2, 4], score=-0.1), "'score' must be"),
        (runs([2, 4], score=float("nan")), "'score' must be"),
        (runs([2, 4], score=float("inf")), "'score' must be"),
        (runs([2, 4], score=1e39), "'score' must be"),
        (runs([2, 4], score=10**400), "'score' must be"),
        (runs([2, 4], predicted_iou=float("nan")), "mask 0: 'predicted_iou' must be"),
        (dump([record(LEFT, predicted_iou=1), record(LEFT, predicted_iou=-1)]), "mask 1: 'predicted_iou' must be"),
        (dump([record(LEFT, predicted_iou=1), record(LEFT, predicted_iou=None)]), "mask 1: 'predicted_iou' must be"),
    ],
)
def test_says_what_is_wrong(data, message):
    with pytest.raises(ProposalFileError, match=message):
        masks.read(data, 10)


def test_refuses_too_many_cells():
    pixels = np.arange(300 * 300).reshape(300, 300)
    records = [record(pixels >> bit & 1 == 1) for bit in range(17)]
    with pytest.raises(ProposalFileError, match="65536 superpixels"):
        masks.read(dump(records), 17)


def test_a_large_photo_of_few_runs():
    regions, _ = masks.read(runs([1_000_000, 2_000_000, 3_000_000], size=(2000, 3000)), 10)
    assert regions.region_areas.tolist() == [2_000_000]
    assert regions.boxes.tolist() == [[500, 0, 1500, 2000]]


@given(hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))), st.integers(1, 7))
def test_equals_the_dense_masks(stack, count):
    for write in (compressed, plain):
        data = dump([record(mask, write, score=n) for n, mask in enumerate(stack)])
        if not stack.any():
            with pytest.raises(ProposalFileError, match="empty"):
                masks.read(data, count)
            continue
        regions, objectness = masks.read(data, count)
        last = {mask.tobytes(): n for n, mask in enumerate(stack) if mask.any()}  # the best of equals: scores ascend
        kept = sorted(last.values(), reverse=True)[:count]
        assert dense(regions) == stack[kept].tolist()
        assert objectness.tolist() == kept


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


@settings(max_examples=300)
@given(st.sampled_from(FILES), st.data())
def test_nothing_but_its_own_error_escapes_from_damaged_bytes(file, data):
    damaged = bytearray(file)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(
            st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789-.,[]{}"')),
        )
    reads_or_refuses(bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged))


@settings(max_examples=300)
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


@settings(max_examples=200)
@given(JSON, st.fixed_dictionaries({"size": JSON, "counts": JSON}), JSON)
def test_nothing_but_its_own_error_escapes_from_other_json(content, segmentation, score):
    reads_or_refuses(dump(content))
    reads_or_refuses(dump([{"segmentation": segmentation, "score": score}]))
    reads_or_refuses(runs([2, 4], score=score))
