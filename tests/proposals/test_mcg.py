import struct
import zlib
from io import BytesIO

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from scipy.spatial import KDTree

from wsseg_ray.proposals import ProposalFileError, mcg

SUPERPIXELS = np.array([[1, 1, 4], [2, 2, 4]])  # id 3 has no pixel
LABELS = [[1], [4, 2], [1, 2, 4]]
SCORES = [0.2, 0.9, 0.5]


def cell(labels, column=False, dtype=float):
    cells = np.empty((len(labels), 1), object)
    for n, ids in enumerate(labels):
        cells[n, 0] = np.array(ids, dtype).reshape((-1, 1) if column else (1, -1))
    return cells


def mat5(compress=True, **fields):
    fields = {
        "scores": np.array(SCORES)[:, None],
        "superpixels": SUPERPIXELS.astype(float),
        "labels": cell(LABELS),
        "bboxes": np.array([[1.0, 1.0, 2.0, 2.0]]),
    } | fields
    file = BytesIO()
    savemat(file, {name: value for name, value in fields.items() if value is not None}, do_compression=compress)
    return file.getvalue()


def mat73(labels=LABELS, userblock=512, column=False, dtype=float, **fields):
    """MATLAB's HDF5 layout: arrays transposed, a cell is an array of references, an empty array is its own shape."""
    fields = {"scores": np.array(SCORES)[:, None], "superpixels": SUPERPIXELS.astype(float)} | fields
    file = BytesIO()
    with h5py.File(file, "w", userblock_size=userblock) as hdf5:
        for name, value in fields.items():
            if value is not None:
                values = np.asarray(value).T
                hdf5.create_dataset(name, data=values, compression="gzip" if values.size > 1000 else None)
        if labels is not None:
            references = np.empty((1, len(labels)), h5py.ref_dtype)
            for n, ids in enumerate(labels):
                values = np.array(ids, dtype).reshape((1, -1) if column else (-1, 1))
                item = hdf5.create_dataset(f"#refs#/{n}", data=values if len(ids) else np.zeros(2, np.uint64))
                if not len(ids):
                    item.attrs["MATLAB_empty"] = np.uint8(1)
                references[0, n] = item.ref
            hdf5["labels"] = references
    data = bytearray(file.getvalue())
    if userblock:
        header = b"MATLAB 7.3 MAT-file"
        data[: len(header)] = header
    return bytes(data)


def element(kind, payload):
    if len(payload) <= 4 and kind != 14:
        return struct.pack("<HH", kind, len(payload)) + payload.ljust(4, b"\0")
    return struct.pack("<II", kind, len(payload)) + payload + bytes(-len(payload) % 8)


def matrix(flags, shape, name, content):
    fields = element(6, struct.pack("<II", flags, 0)), element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, b"".join(fields) + element(1, name) + content)


def matlab5(*matrices, pack=zlib.compress):
    """As MATLAB writes it, unlike SciPy: doubles in the smallest type that holds them, each array compressed."""
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    return header + b"".join(struct.pack("<II", 15, len(pack(data))) + pack(data) for data in matrices)


DOUBLE, CELL = 6, 1
MATLAB5 = (
    matrix(DOUBLE, [4, 2], b"bboxes", element(2, bytes(8))),
    matrix(DOUBLE, [3, 1], b"scores", element(9, struct.pack("<3d", *SCORES))),
    matrix(DOUBLE, [2, 3], b"superpixels", element(2, bytes([1, 2, 1, 2, 4, 4]))),
    matrix(
        CELL,
        [3, 1],
        b"labels",
        matrix(DOUBLE, [1, 1], b"", element(2, b"\x01"))
        + matrix(DOUBLE, [2, 1], b"", element(4, struct.pack("<2H", 4, 2)))
        + matrix(DOUBLE, [1, 3], b"", element(3, struct.pack("<3h", 1, 2, 4))),
    ),
)

FILES = {
    "as MATLAB": matlab5(*MATLAB5),
    "compressed": mat5(),
    "plain": mat5(compress=False),
    "columns": mat5(labels=cell(LABELS, column=True)),
    "flat scores": mat5(scores=np.array(SCORES)[None]),
    "integers": mat5(superpixels=SUPERPIXELS.astype(np.uint16), scores=np.array(SCORES, np.float32)[:, None]),
    "7.3": mat73(),
    "7.3 without header": mat73(userblock=0),
    "7.3 integers": mat73(superpixels=SUPERPIXELS.astype(np.uint32)),
}


@pytest.mark.parametrize("name", FILES)
def test_best_first_and_dense(name):
    regions, objectness = mcg.read(FILES[name], 10)
    assert regions.superpixels.tolist() == [[0, 0, 2], [1, 1, 2]]
    assert regions.membership.toarray().tolist() == [[0, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert objectness.dtype == np.float32
    np.testing.assert_array_equal(objectness, np.array([0.9, 0.5, 0.2], np.float32))


@pytest.mark.parametrize("make", [mat5, mat73])
def test_takes_the_best_and_keeps_the_order_of_equals(make):
    regions, objectness = mcg.read(make(scores=np.array([[0.5], [0.5], [0.9]])), 2)
    assert regions.membership.toarray().tolist() == [[1, 1, 1], [1, 0, 0]]
    assert objectness.tolist() == pytest.approx([0.9, 0.5])


def small_of_types(make, dtype, score_dtype):
    fields = {"superpixels": SUPERPIXELS.astype(dtype), "scores": np.array(SCORES, score_dtype)[:, None]}
    if make is mat73:
        return mat73(column=True, dtype=dtype, **fields)
    return mat5(labels=cell(LABELS, column=True, dtype=dtype), **fields)


@pytest.mark.parametrize("make", [mat5, mat73])
@pytest.mark.parametrize("dtype", ["f8", "f4", "u1", "u2", "u4", "i4", "i8"])
@pytest.mark.parametrize("score_dtype", ["f8", "f4"])
def test_any_number_type(make, dtype, score_dtype):
    regions, objectness = mcg.read(small_of_types(make, dtype, score_dtype), 10)
    assert regions.superpixels.tolist() == [[0, 0, 2], [1, 1, 2]]
    assert regions.membership.toarray().tolist() == [[0, 1, 1], [1, 1, 1], [1, 0, 0]]
    np.testing.assert_array_equal(objectness, np.array([0.9, 0.5, 0.2], np.float32))


@pytest.fixture(scope="module")
def photo():
    """A photo's proposals of the size and kind of MCG's: 300 superpixels, 1,940 proposals, best first."""
    random = np.random.default_rng(0)
    height, width = 375, 500
    pixels = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2)
    superpixels = KDTree(random.uniform(0, 1, (300, 2)) * [height, width]).query(pixels)[1].reshape(height, width) + 1
    labels = [random.permutation(300)[: random.integers(1, 60)] + 1 for _ in range(1940)]
    labels[7] = np.arange(1, 301)
    return superpixels, labels, np.sort(random.uniform(0, 1.2, 1940))[::-1]


@pytest.mark.parametrize(
    ("make", "dtype", "score_dtype", "count"),
    [
        ("compressed", "f8", "f8", 2000),
        ("plain", "u2", "f4", 2000),
        ("compressed", "i4", "f8", 500),
        ("7.3", "f8", "f8", 2000),
        ("7.3", "u4", "f4", 500),
    ],
)
def test_a_file_of_mcgs_size_is_what_it_was_made_of(photo, make, dtype, score_dtype, count):
    superpixels, labels, scores = photo
    fields = {
        "superpixels": superpixels.astype(dtype),
        "scores": scores.astype(score_dtype)[:, None],
        "bboxes": np.ones((1500, 4)),  # without those that repeat
    }
    if make == "7.3":
        data = mat73(labels, column=True, dtype=dtype, **fields)
    else:
        data = mat5(compress=make == "compressed", labels=cell(labels, column=True, dtype=dtype), **fields)
    regions, objectness = mcg.read(data, count)
    expected = np.zeros((len(labels), 300), bool)
    for n, ids in enumerate(labels):
        expected[n, ids - 1] = True
    np.testing.assert_array_equal(regions.superpixels, superpixels - 1)
    np.testing.assert_array_equal(regions.membership.toarray(), expected[:count])
    np.testing.assert_array_equal(objectness, scores[:count].astype(np.float32))
    for n in range(0, len(regions), 97):
        mask = np.isin(superpixels, labels[n])
        ys, xs = np.nonzero(mask)
        assert (regions.mask(n) == mask).all()
        assert regions.boxes[n].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("make", [mat5, mat73])
@pytest.mark.parametrize("bboxes", [None, np.full((2, 4), np.nan), np.full((9, 4), -1.0), np.zeros((0, 4)), [[5]]])
def test_boxes_are_neither_needed_nor_trusted(make, bboxes):
    regions, _ = mcg.read(make(bboxes=bboxes), 10)
    assert regions.boxes.tolist() == [[0, 0, 3, 2], [0, 0, 3, 2], [0, 0, 2, 1]]


def test_repeated_ids_count_once():
    regions, _ = mcg.read(mat5(labels=cell([[1, 1], [2], [4]])), 10)
    assert regions.region_areas.tolist() == [2, 2, 2]


def test_one_proposal_of_one_superpixel():
    for data in (mat5(scores=0.5, superpixels=1, labels=cell([[1]])), mat73(labels=[[1]], scores=[[1]])):
        assert len(mcg.read(data, 10)[0]) == 1


NAN = np.where(SUPERPIXELS == 2, np.nan, SUPERPIXELS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable MATLAB file"),
        (b"MATLAB", "not a readable MATLAB file"),
        (b"\xff\xd8\xff" * 200, "not a readable MATLAB file"),
        (FILES["compressed"][:200], "not a readable MATLAB file"),
        (FILES["7.3"][:700], "not a readable MATLAB file"),
        (FILES["plain"][:126] + b"MI" + FILES["plain"][128:], "its header"),
        (FILES["plain"][:-8], "cut off"),
        (matlab5(*MATLAB5, pack=lambda data: zlib.compress(data)[:-5]), "cut off"),
        (
            matlab5(*MATLAB5[:3], matrix(CELL, [3, 1], b"labels", 3 * element(14, b""))),
            "3 proposals without a superpixel",
        ),
        (matlab5(*MATLAB5, matrix(DOUBLE, [-1, 3], b"scores", element(2, b"123"))), "'scores' is damaged"),
        (matlab5(*MATLAB5, matrix(DOUBLE, [3, 1], b"scores", element(16, b"123"))), "'scores' is damaged"),
        (matlab5(*MATLAB5, matrix(DOUBLE, [4, 1], b"scores", element(2, b"123"))), "not a readable MATLAB file"),
        (matlab5(*MATLAB5, matrix(DOUBLE, [20000, 20000], b"superpixels", b"")), "not a readable MATLAB file"),
        (mat5(scores=None), "no field scores"),
        (mat5(labels=None, superpixels=None), "no field superpixels, labels"),
        (b'[{"segmentation": {"size": [2, 3], "counts": "06"}}]' * 9, "not a readable MATLAB file"),
        (mat73(labels=None), "no field labels"),
        (mat5(scores=np.ones((2, 1))), "2 scores for 3 proposals"),
        (mat73(scores=np.ones((2, 1))), "2 scores for 3 proposals"),
        (mat5(scores=np.array([[1], [np.nan], [1]])), "finite"),
        (mat5(scores=np.array([["a"], ["b"], ["c"]])), "'scores' must hold real numbers"),
        (mat5(scores=np.zeros((0, 1)), labels=cell([])), "no proposals"),
        (mat5(labels=np.ones((3, 1))), "must be a cell"),
        (mat5(labels="abc"), "must be a cell"),
        (mat5(labels=cell([[1], [], [2]])), "1 proposals without a superpixel"),
        (mat73(labels=[[1], [], [2]]), "1 proposals without a superpixel"),
        (mat5(labels=cell([[1], [3], [2]])), "names superpixel 3,"),
        (mat5(labels=cell([[1], [9], [2]])), "names superpixel 9,"),
        (mat73(labels=[[1], [9], [2]]), "names superpixel 9,"),
        (mat5(labels=cell([[1], [0], [2]])), "whole numbers from 1"),
        (mat5(labels=cell([[1], [1.5], [2]])), "whole numbers from 1"),
        (mat5(superpixels=NAN), "'superpixels' holds a value"),
        (mat73(superpixels=NAN), "'superpixels' holds a value"),
        (mat5(superpixels=SUPERPIXELS - 1), "whole numbers from 1"),
        (mat5(superpixels=SUPERPIXELS * 1j), "'superpixels' must hold real numbers"),
        (mat5(superpixels={"a": 1}), "'superpixels' must hold real numbers"),
        (mat73(superpixels=SUPERPIXELS * 1j), "must hold superpixel ids"),
        (mat5(labels=cell([[1], [1], [1]])[:2]), "3 scores for 2 proposals"),
        (mat5(superpixels=np.ones((2, 2, 2))), "H x W"),
        (mat5(superpixels=np.ones((0, 2))), "H x W"),
        (mat5(superpixels=np.arange(1, 70001).reshape(100, 700)), "65535"),
    ],
)
def test_says_what_is_wrong(data, message):
    with pytest.raises(ProposalFileError, match=message):
        mcg.read(data, 10)


def test_refuses_a_map_beyond_any_photo():
    file = BytesIO()
    with h5py.File(file, "w") as hdf5:
        hdf5.create_dataset("superpixels", (20_000, 20_000), "u2", chunks=(100, 100))  # no chunk is ever written
        hdf5["scores"] = np.ones((1, 1))
        hdf5["labels"] = np.full((1, 1), hdf5["scores"].ref, h5py.ref_dtype)
    with pytest.raises(ProposalFileError, match="20000 x 20000"):
        mcg.read(file.getvalue(), 10)


def test_refuses_a_proposal_of_more_superpixels_than_any_photo_has():
    file = BytesIO()
    with h5py.File(file, "w") as hdf5:
        hdf5["superpixels"], hdf5["scores"] = SUPERPIXELS.T, np.ones((1, 1))
        huge = hdf5.create_dataset("#refs#/0", (70_000, 1), "u2", chunks=(100, 1))  # no chunk is ever written
        hdf5["labels"] = np.full((1, 1), huge.ref, h5py.ref_dtype)
    with pytest.raises(ProposalFileError, match="70000 x 1; at most 65536"):
        mcg.read(file.getvalue(), 10)


@settings(max_examples=300)
@given(st.sampled_from(["plain", "compressed", "as MATLAB", "7.3"]), st.data())
def test_nothing_but_its_own_error_escapes(name, data):
    damaged = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged
    try:
        regions, objectness = mcg.read(bytes(damaged), 10)
    except ProposalFileError as error:
        assert str(error)
    else:
        assert len(regions) == len(objectness) > 0
