"""The tables of a run: one row class per table, which is also the table's schema.

A table has one row per photo. A row class says for each column its type on disk, and in a few words its shape and
meaning; the schema of the Parquet files is made from it. A kernel takes row objects and returns row objects.
Arrays are stored as flat lists and come back in their shape, which follows from other columns of the row.
"""

# ruff: noqa: RUF009 (a column is a dataclass field with its type)

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

SHARD_ROWS = 32  # bounds what one task holds and what a kill repeats
MAX_SHARD_ROWS = 1024  # the same, of data sets with so many photos that the number of files matters more
MAX_SHARDS = 8192  # of a split, until shards have MAX_SHARD_ROWS or MAX_SHARD_PIXELS
MAX_SHARD_PIXELS = 32_000_000  # 100 MB as RGB

Shape = tuple[str | int, ...]


def text(about: str) -> Any:
    """A column of strings. `about` says what it holds."""
    return field(default="", metadata={"type": pa.string(), "about": about})


def number(dtype: str, about: str) -> Any:
    """A column of single numbers. `dtype` is NumPy's name of the type on disk."""
    return field(default=0, metadata={"type": pa.from_numpy_dtype(np.dtype(dtype)), "about": about})


def texts(about: str) -> Any:
    """A column of lists of strings."""
    return field(default_factory=list, metadata={"type": pa.list_(pa.string()), "about": about})


def blobs(about: str) -> Any:
    """A column of lists of encoded files, such as PNGs."""
    return field(default_factory=list, metadata={"type": pa.list_(pa.binary()), "about": about})


def array(dtype: str, shape: Shape, about: str) -> Any:
    """A column of arrays.

    Arguments:
        dtype: NumPy's name of the type on disk.
        shape: an integer, or the name of a column that holds the size or has it as its length; one of them may be -1.
            An empty array may stand for "none".
        about: the shape in letters, and what the array holds.
    """
    kind = pa.large_list(pa.from_numpy_dtype(np.dtype(dtype)))
    return field(
        default_factory=lambda: np.empty(0, dtype),
        metadata={"type": kind, "about": about, "shape": shape, "dtype": np.dtype(dtype)},
    )


@dataclass
class Row:
    """What every row has. A row with an error has no other content."""

    image_id: str = text("the photo's name, unique in the run")
    error: str = text('why the photo could not be processed, or ""')

    @property
    def is_good(self) -> bool:
        return not self.error


@dataclass
class ImageRow(Row):
    """Table `images`: a photo that can be decoded."""

    uri: str = text("where the photo lies")
    height: int = number("int32", "pixels, after dataset.max_side")
    width: int = number("int32", "pixels, after dataset.max_side")
    labels: np.ndarray = array("int32", (-1,), "(K,) indices into the class list, sorted")
    split: str = text("train or val")
    mask_uri: str = text('where the true mask lies, or ""')
    digest: str = text('`sources.digest` of the photo\'s file, by which later stages see that it changed; or ""')


@dataclass
class FeatureRow(Row):
    """Tables `features` and `features_segmenter`: what a frozen backbone sees in a photo."""

    levels: list[str] = texts("(n,) the level of each map")
    shapes: np.ndarray = array("int32", ("levels", 5), "(n, 5) scale in thousandths, 1 if mirrored, C, h, w")
    maps: np.ndarray = array("float16", (-1,), "(sum of C h w,) the maps, one after the other")


@dataclass
class ProposalRow(Row):
    """Table `proposals`: the regions of a training photo."""

    height: int = number("int32", "pixels")
    width: int = number("int32", "pixels")
    superpixels: np.ndarray = array("uint16", ("height", "width"), "(H, W) superpixel of each pixel, 0..S-1")
    indptr: np.ndarray = array("int32", (-1,), "(N + 1,) of M (N, S) as CSR rows, best proposal first")
    indices: np.ndarray = array("int32", (-1,), "(nnz,) of M (N, S): the superpixels of each proposal")
    objectness: np.ndarray = array("float32", (-1,), "(N,) in 0..1")
    is_mask: np.ndarray = array("uint8", (-1,), "(N,) 1 where the proposal is a mask of SAM")
    hypotheses: np.ndarray = array("int32", (-1,), "(h,) the proposals that train HCP")


@dataclass
class ScoreRow(Row):
    """Table `scores`: a training photo's proposals as HCP sees them, or a val photo as HCP sees it."""

    labels: np.ndarray = array("int32", (-1,), "(K,) the photo's classes")
    scores: np.ndarray = array("float16", ("labels", -1), "(K, N) score of every proposal for the photo's classes")
    candidate: np.ndarray = array("int32", (-1,), "(n,) proposals that are candidates, class after class")
    candidate_label: np.ndarray = array("int32", ("candidate",), "(n,) the class that each is a candidate of")
    area: np.ndarray = array("float32", ("candidate",), "(n,) share of the photo that the candidate covers")
    norm: np.ndarray = array("float32", ("candidate",), "(n,) length of the candidate's CNN feature")
    features: np.ndarray = array("float16", ("candidate", -1), "(n, D) PCA features")
    fallback: np.ndarray = array("int32", ("labels",), "(K,) 1 where no proposal passed the threshold")
    photo_logits: np.ndarray = array("float32", (-1,), "(C,) of a val photo as the one hypothesis; all that it has")


@dataclass
class RefinedRow(Row):
    """Table `refined`: how far each candidate is from those of other photos, and whether it is kept."""

    distance: np.ndarray = array("float32", (-1,), "(n,) Eq. (1), in the order of the candidates in `scores`")
    kept: np.ndarray = array("bool", (-1,), "(n,) whether the candidate is kept")


@dataclass
class SupervisionRow(Row):
    """Table `supervision`: what segmentation networks learn from."""

    labels: np.ndarray = array("int32", (-1,), "(K,) the photo's classes")
    maps: np.ndarray = array("float16", ("labels", -1), "(K, S) localization maps")
    mask: np.ndarray = array("uint8", (-1,), "(S,) rough mask: 0 background, class + 1")
    maps_unrefined: np.ndarray = array("float16", ("labels", -1), "(K, S) the maps from all candidates")
    mask_unrefined: np.ndarray = array("uint8", (-1,), "(S,) the rough mask from all candidates")
    candidate_iou: np.ndarray = array("float32", (-1,), "(K,) mean IoU of the candidates with the true mask, if any")
    quality: np.ndarray = array("int64", (-1,), "(V, A, C + 1, C + 1) confusion matrices, see stages/supervise.py")


@dataclass
class OwnLabelsRow(Row):
    """Tables `labels-1`, `labels-2`, ...: what networks see in a training photo, after a round of training."""

    networks: list[str] = texts("(n,) names")
    png: list[bytes] = blobs("(n,) palette PNG of each network's labels")
    confusion: np.ndarray = array("int64", ("networks", -1), "(n, (C + 1)^2) pixels by true and own class, if known")


@dataclass
class PredictionRow(Row):
    """Table `predictions`: the labels of a val photo."""

    networks: list[str] = texts("(n,) names")
    png: list[bytes] = blobs("(n,) palette PNG of each network's labels, at full size")
    png_crf: list[bytes] = blobs("(n,) the same after the CRF; empty where it is off")
    confusion: np.ndarray = array("int64", (-1,), "(n, 2, C + 1, C + 1) without and with CRF; empty without true mask")


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Table(Generic[R]):
    """A folder of Parquet files with rows of one class."""

    folder: str
    row: type[R]


IMAGES = Table("images", ImageRow)
FEATURES = Table("features", FeatureRow)
SEGMENTER_FEATURES = Table("features_segmenter", FeatureRow)
PROPOSALS = Table("proposals", ProposalRow)
SCORES = Table("scores", ScoreRow)
REFINED = Table("refined", RefinedRow)
SUPERVISION = Table("supervision", SupervisionRow)
PREDICTIONS = Table("predictions", PredictionRow)


def own_labels(round_: int) -> Table[OwnLabelsRow]:
    """The table of what networks see in the training photos before a round, counted from 1."""
    return Table(f"labels-{round_}", OwnLabelsRow)


def shard_size(count: int, pixels: int = 0) -> int:
    """How many of `count` photos a shard holds.

    At most 32, and so few that there are 32 shards, but at least 4. More than 262,144 photos are divided into 8,192
    shards of up to 1,024 photos, for a store has a price per file. Of large photos a shard holds so few that they have
    MAX_SHARD_PIXELS together, but at least one. It depends on the arguments alone, so every machine cuts the same way.

    Arguments:
        pixels: of the largest photo; 0: not known, or small.
    """
    few, many = min(SHARD_ROWS, max(4, math.ceil(count / 32))), min(MAX_SHARD_ROWS, math.ceil(count / MAX_SHARDS))
    return max(1, min(max(few, many), MAX_SHARD_PIXELS // pixels if pixels else MAX_SHARD_ROWS))


def schema(row: type[Row]) -> pa.Schema:
    """The Arrow schema of a row class."""
    return pa.schema([(column.name, column.metadata["type"]) for column in dataclasses.fields(row)])


def encode(row: type[R], rows: Sequence[R]) -> pa.Table:
    """Rows as an Arrow table of their class's schema."""
    columns = [_column(column, [getattr(one, column.name) for one in rows]) for column in dataclasses.fields(row)]
    return pa.Table.from_arrays(columns, schema=schema(row))


def decode(row: type[R], table: pa.Table) -> list[R]:
    """Rows of an Arrow table that has some or all columns of the class.

    Asking a row for a column that was not read raises AttributeError.
    """
    if table.num_rows == 0:
        return []
    read = [column for column in dataclasses.fields(row) if column.name in table.column_names]
    columns = [_values(table.column(column.name).combine_chunks(), column.metadata) for column in read]
    rows = []
    for values in zip(*columns, strict=True):
        found = row.__new__(row)
        found.__dict__.update(zip((column.name for column in read), values, strict=True))
        for column in read:
            if len(column.metadata.get("shape", ())) > 1:
                found.__dict__[column.name] = _shaped(found, column)
        rows.append(found)
    return rows


def columns_of(row: type[Row], names: Iterable[str]) -> list[str]:
    """The columns to read for some columns: those that give the arrays their shape are read too."""
    shapes = {column.name: column.metadata.get("shape", ()) for column in dataclasses.fields(row)}
    wanted = dict.fromkeys(names)
    for name in list(wanted):
        wanted |= dict.fromkeys(side for side in shapes[name] if isinstance(side, str) and len(shapes[name]) > 1)
    return list(wanted)


def _shaped(found: Row, column: dataclasses.Field[Any]) -> np.ndarray:
    flat = found.__dict__[column.name]
    if flat.size == 0:
        return flat
    sides = [found.__dict__[side] if isinstance(side, str) else side for side in column.metadata["shape"]]
    return flat.reshape([side if isinstance(side, int) else len(side) for side in sides])


def _values(values: pa.Array, metadata: Any) -> list[Any]:
    if "dtype" not in metadata:
        return values.to_pylist()
    flat = values.values.to_numpy(zero_copy_only=False)
    return [flat[a:b] for a, b in pairwise(values.offsets.to_numpy().tolist())]


def _column(column: dataclasses.Field[Any], values: list[Any]) -> pa.Array:
    kind, dtype = column.metadata["type"], column.metadata.get("dtype")
    if dtype is None:
        return pa.array(values, kind)
    flat = [np.asarray(value, dtype).ravel() for value in values]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in flat])]).astype(np.int64)
    joined = np.concatenate([*flat, np.empty(0, dtype)])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(joined, kind.value_type))
