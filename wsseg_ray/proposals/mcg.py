"""Proposals from the files of MCG (Arbeláez, Pont-Tuset et al., "Multiscale Combinatorial Grouping", CVPR 2014).

One MATLAB file per photo, version 5 or 7.3. Three of its fields are read:

    scores       (n, 1)  objectness
    superpixels  (H, W)  a label map, counted from 1; ids may have gaps
    labels       (n, 1)  a cell array of vectors: the superpixel ids of each proposal

The field `bboxes` has no duplicates and so fewer rows; boxes are computed from the regions instead.

Version 5 is read here, not by scipy.io.loadmat, because its C code crashes the process on some damaged files.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Container, Iterator, Sequence
from io import BytesIO
from itertools import islice

import h5py
import numpy as np

from wsseg_ray.proposals import MAX_PIXELS, ProposalFileError, Source
from wsseg_ray.proposals.regions import MAX_SUPERPIXELS, RegionProposals, from_flat

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HDF5_OFFSETS = (0, 512, 1024, 2048)  # MATLAB 7.3 writes a text header of 512 bytes before the signature
FIELDS = ("superpixels", "scores", "labels")
MAX_ID = 2**31 - 1

# Version 5: "MAT-File Format" of The MathWorks, chapter 1. Types of elements, classes of arrays, a flag of arrays.
MAT5_HEADER = 128  # bytes
MAT5_NUMBERS = {
    1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"
}  # fmt: skip
MAT5_MATRIX, MAT5_COMPRESSED = 14, 15
MAT5_CELL, MAT5_NUMERIC = 1, range(6, 16)
MAT5_COMPLEX = 0x800


def read(data: bytes, count: int) -> tuple[RegionProposals, np.ndarray]:
    """The best proposals of an MCG file.

    Arguments:
        data: the file's bytes.
        count: how many proposals to take, by score, descending; equal scores keep the file's order.

    Costs 1 ms per proposal in version 7.3, which stores each proposal as one HDF5 data set, and 0.1 ms in version 5.

    Returns the proposals and their objectness, (N,) float32 descending, N at most `count`.
    Raises ProposalFileError, and no other error, where the file is not valid.
    """
    is_hdf5 = any(data[offset : offset + 8] == HDF5_SIGNATURE for offset in HDF5_OFFSETS)
    try:
        superpixels, scores, labels = _read_hdf5(data, count) if is_hdf5 else _read_mat5(data, count)
    except ProposalFileError:
        raise
    except Exception as error:  # on damaged bytes the two parsers can raise any exception
        raise ProposalFileError(f"not a readable MATLAB file: {error or type(error).__name__}") from error
    return _regions(superpixels, labels), scores


def _read_mat5(data: bytes, count: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    if data[MAT5_HEADER - 2 : MAT5_HEADER] != b"IM":  # "MI" is big-endian; no MATLAB since MCG's time writes it
        raise ProposalFileError("not a readable MATLAB file: its header is not that of version 5 or 7.3")
    fields = {}
    for kind, payload in _elements(memoryview(data)[MAT5_HEADER:]):
        if kind == MAT5_COMPRESSED:
            kind, payload = next(_elements(_inflated(payload)))
        if kind == MAT5_MATRIX:
            fields[_matrix(payload)[0]] = payload
    _check_fields(fields)
    _, flags, _, elements = _matrix(fields["labels"])
    if flags & 0xFF != MAT5_CELL:
        raise ProposalFileError("'labels' must be a cell array of superpixel lists")
    cells = [payload for _, payload in elements]
    scores, order = _best(_numbers("scores", fields["scores"]), len(cells), count)
    return _numbers("superpixels", fields["superpixels"]), scores, [_numbers("labels", cells[n]) for n in order]


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and payload of each data element in `data`."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        start, end = at + 8, at + 8 + size
        if kind >> 16:  # up to four bytes are stored in the tag itself
            kind, start, end = kind & 0xFFFF, at + 4, at + 4 + (kind >> 16)
        if end > len(data):
            raise ProposalFileError("the file is cut off")
        yield kind, data[start:end]
        at = end if kind == MAT5_COMPRESSED else -(-end // 8) * 8


def _inflated(payload: memoryview) -> memoryview:
    stream = zlib.decompressobj()
    data = stream.decompress(payload, 8 * MAX_PIXELS)
    if not stream.eof:
        raise ProposalFileError("a compressed field is cut off or too large")
    return memoryview(data)


def _matrix(payload: memoryview) -> tuple[str, int, list[int], Iterator[tuple[int, memoryview]]]:
    """Name, flags (the low byte is the class), shape and content of an array."""
    elements = _elements(payload)
    flags, shape, name = (payload for _, payload in islice(elements, 3))
    shape = np.frombuffer(shape, "<i4").tolist()
    return bytes(name).decode("latin-1"), struct.unpack_from("<I", flags)[0], shape, elements


def _numbers(name: str, payload: memoryview) -> np.ndarray:
    if len(payload) == 0:  # how MATLAB writes an empty array in a cell
        return np.empty(0)
    _, flags, shape, elements = _matrix(payload)
    if flags & 0xFF not in MAT5_NUMERIC or flags & MAT5_COMPLEX:
        raise ProposalFileError(f"'{name}' must hold real numbers")
    kind, values = next(elements)
    if min(shape) < 0 or kind not in MAT5_NUMBERS:
        raise ProposalFileError(f"'{name}' is damaged")
    _check_size(shape)
    return np.frombuffer(values, MAT5_NUMBERS[kind]).reshape(shape, order="F")


def _read_hdf5(data: bytes, count: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    with h5py.File(BytesIO(data), "r") as file:
        _check_fields(file)
        references = _load(file["labels"])
        if h5py.check_ref_dtype(references.dtype) is not h5py.Reference:
            raise ProposalFileError(f"'labels' must be a cell array of superpixel lists, not {references.dtype}")
        scores, order = _best(_load(file["scores"]), references.size, count)
        labels = [_load(file[reference], most=MAX_SUPERPIXELS) for reference in references.ravel()[order]]
        return _load(file["superpixels"]).T, scores, labels  # HDF5 holds MATLAB's columns as rows


def _load(item: h5py.Dataset, most: int = MAX_PIXELS) -> np.ndarray:
    if not isinstance(item, h5py.Dataset):
        raise ProposalFileError(f"'{item.name}' is not an array")
    if "MATLAB_empty" in item.attrs:  # an empty array is stored as its own shape
        return np.empty(0)
    _check_size(item.shape, most)
    return item[()]


def _check_fields(present: Container[str]) -> None:
    missing = [name for name in FIELDS if name not in present]
    if missing:
        raise ProposalFileError(f"no field {', '.join(missing)}; an MCG file has {', '.join(FIELDS)}")


def _check_size(shape: Sequence[int], most: int = MAX_PIXELS) -> None:
    if math.prod(shape) > most:
        raise ProposalFileError(f"an array of {' x '.join(map(str, shape))}; at most {most} values are allowed")


def _best(scores: np.ndarray, label_count: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) float32 of the best proposals, descending, and their indices (N,)."""
    scores = np.asarray(scores).ravel()
    if scores.dtype.kind not in "uif":
        raise ProposalFileError(f"'scores' must be numbers, not {scores.dtype}")
    if scores.size != label_count:
        raise ProposalFileError(f"{scores.size} scores for {label_count} proposals")
    if label_count == 0:
        raise ProposalFileError("no proposals")
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32)
    if not np.isfinite(scores).all():
        raise ProposalFileError("'scores' holds a value that is not a finite number")
    order = np.argsort(-scores, kind="stable")[:count]
    return scores[order], order


def _regions(superpixels: np.ndarray, labels: list[np.ndarray]) -> RegionProposals:
    superpixels = np.asarray(superpixels)
    if superpixels.ndim != 2 or superpixels.size == 0:
        raise ProposalFileError(f"'superpixels' must be a map of H x W, got shape {superpixels.shape}")
    ids, dense = np.unique(_ids("superpixels", superpixels), return_inverse=True)
    labels = [_ids("labels", np.asarray(label)).ravel() for label in labels]
    lengths = np.array([len(label) for label in labels])
    if (lengths == 0).any():
        raise ProposalFileError(f"{(lengths == 0).sum()} proposals without a superpixel")
    members = np.concatenate(labels)
    columns = np.minimum(np.searchsorted(ids, members), len(ids) - 1)
    unknown = members[ids[columns] != members]
    if len(unknown):
        raise ProposalFileError(f"a proposal names superpixel {unknown[0]}, which is not in the map")
    try:
        return from_flat(dense.reshape(superpixels.shape), np.concatenate([[0], np.cumsum(lengths)]), columns)
    except ValueError as error:
        raise ProposalFileError(str(error)) from error


def _ids(name: str, values: np.ndarray) -> np.ndarray:
    """Superpixel ids as int64, whatever numeric type MATLAB stored them in."""
    if values.dtype.kind not in "uif":
        raise ProposalFileError(f"'{name}' must hold superpixel ids, not {values.dtype}")
    if not ((values >= 1) & (values <= MAX_ID) & (values == np.floor(values))).all():
        raise ProposalFileError(f"'{name}' holds a value that is not a superpixel id: ids are whole numbers from 1")
    return values.astype(np.int64)


SOURCE = Source(from_file=read, suffix=".mat")
