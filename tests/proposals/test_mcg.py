from io import BytesIO

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from wsseg_ray.proposals import ProposalFileError, mcg

SUPERPIXELS = np.array([[1, 1, 4], [2, 2, 4]])  # id 3 has no pixel
LABELS = [[1], [4, 2], [1, 2, 4]]
SCORES = [0.2, 0.9, 0.5]


def cell(labels, column=False):
    cells = np.empty((len(labels), 1), object)
    for n, ids in enumerate(labels):
        cells[n, 0] = np.array(ids, float).reshape((-1, 1) if column else (1, -1))
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


def mat73(labels=LABELS, userblock=512, **fields):
    """MATLAB's HDF5 layout: arrays transposed, a cell is an array of references, an empty array is its own shape."""
    fields = {"scores": np.array(SCORES)[:, None], "superpixels": SUPERPIXELS.astype(float)} | fields
    file = BytesIO()
    with h5py.File(file, "w", userblock_size=userblock) as hdf5:
        for name, value in fields.items():
            if value is not None:
                hdf5[name] = np.asarray(value).T
        if labels is not None:
            references = np.empty((1, len(labels)), h5py.ref_dtype)
            for n, ids in enumerate(labels):
                values = np.array(ids, float)[:, None] if ids else np.zeros(2, np.uint64)
                item = hdf5.create_dataset(f"#refs#/{n}", data=values)
                if not ids:
                    item.attrs["MATLAB_empty"] = np.uint8(1)
                references[0, n] = item.ref
            hdf5["labels"] = references
    data = bytearray(file.getvalue())
    if userblock:
        header = b"MATLAB 7.3 MAT-file"
        data[: len(header)] = header
    return bytes(data)


FILES = {
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
        (mat5(scores=None), "no field scores"),
        (mat5(labels=None, superpixels=None), "no field superpixels, labels"),
        (mat73(labels=None), "no field labels"),
        (mat5(scores=np.ones((2, 1))), "2 scores for 3 proposals"),
        (mat73(scores=np.ones((2, 1))), "2 scores for 3 proposals"),
        (mat5(scores=np.array([[1], [np.nan], [1]])), "finite"),
        (mat5(scores=np.array([["a"], ["b"], ["c"]])), "'scores' must be numbers"),
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
        (mat5(superpixels=SUPERPIXELS * 1j), "must hold superpixel ids"),
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


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["compressed", "plain", "7.3"]), st.data())
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
