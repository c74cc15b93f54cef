"""Proposals from the files of MCG (Arbeláez, Pont-Tuset et al., "Multiscale Combinatorial Grouping", CVPR 2014).

One MATLAB file a photo, version 5 or 7.3, with three fields that matter:

    scores       (n, 1)  objectness
    superpixels  (H, W)  a label map, counted from 1; ids may have gaps
    labels       (n, 1)  a cell of vectors: the superpixel ids of each proposal

The field `bboxes` is a de-duplicated set with fewer rows, so boxes are computed from the regions instead.
"""

from __future__ import annotations

import math
from io import BytesIO

import h5py
import numpy as np
from scipy.io import loadmat, whosmat

from wsseg_ray.proposals import MAX_PIXELS, ProposalFileError
from wsseg_ray.proposals.regions import RegionProposals, from_flat

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HDF5_OFFSETS = (0, 512, 1024, 2048)  # MATLAB 7.3 writes a text header of 512 bytes before it
FIELDS = ("superpixels", "scores", "labels")
MAX_ID = 2**31 - 1


def read(data: bytes, count: int) -> tuple[RegionProposals, np.ndarray]:
    """The best proposals of an MCG file.

    Arguments:
        data: the file's bytes.
        count: how many to take, by score, descending; equal scores keep the file's order.

    Costs 1 ms a proposal in version 7.3, where each is a data set of its own, and a tenth of it in version 5.

    Returns the proposals and their objectness, (N,) float32 descending, N at most `count`.
    Raises ProposalFileError, and nothing else, where the file is not what it should be.
    """
    is_hdf5 = any(data[offset : offset + 8] == HDF5_SIGNATURE for offset in HDF5_OFFSETS)
    try:
        superpixels, scores, labels = _read_hdf5(data, count) if is_hdf5 else _read_mat5(data, count)
    except ProposalFileError:
        raise
    except Exception as error:  # on damaged bytes the two parsers raise whatever their depths raise
        raise ProposalFileError(f"not a readable MATLAB file: {error or type(error).__name__}") from error
    return _regions(superpixels, labels), scores


def _read_mat5(data: bytes, count: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    shapes = {name: shape for name, shape, _ in whosmat(BytesIO(data))}
    _check_fields(shapes)
    _check_size(shapes["superpixels"])
    fields = loadmat(BytesIO(data), variable_names=FIELDS)
    cells = np.asarray(fields["labels"])
    if cells.dtype != object:
        raise ProposalFileError(f"'labels' must be a cell of superpixel lists, not {cells.dtype}")
    scores, order = _best(fields["scores"], cells.size, count)
    return fields["superpixels"], scores, list(cells.ravel(order="F")[order])


def _read_hdf5(data: bytes, count: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    with h5py.File(BytesIO(data), "r") as file:
        _check_fields(file)
        references = _load(file["labels"])
        if h5py.check_ref_dtype(references.dtype) is not h5py.Reference:
            raise ProposalFileError(f"'labels' must be a cell of superpixel lists, not {references.dtype}")
        scores, order = _best(_load(file["scores"]), references.size, count)
        labels = [_load(file[reference]) for reference in references.ravel()[order]]
        return _load(file["superpixels"]).T, scores, labels  # HDF5 holds MATLAB's columns as rows


def _load(item: h5py.Dataset) -> np.ndarray:
    if not isinstance(item, h5py.Dataset):
        raise ProposalFileError(f"'{item.name}' is not an array")
    if "MATLAB_empty" in item.attrs:  # an empty array is stored as its own shape
        return np.empty(0)
    _check_size(item.shape)
    return item[()]


def _check_fields(present) -> None:
    missing = [name for name in FIELDS if name not in present]
    if missing:
        raise ProposalFileError(f"no field {', '.join(missing)}; an MCG file has {', '.join(FIELDS)}")


def _check_size(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_PIXELS:
        raise ProposalFileError(f"an array of {' x '.join(map(str, shape))} is more than {MAX_PIXELS} pixels")


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
        raise ProposalFileError(f"'{name}' holds a value that is no superpixel id: ids are whole numbers from 1")
    return values.astype(np.int64)
