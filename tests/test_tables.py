"""Rows and their tables: every column says what it is, and comes back as it was written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from wsseg_ray import pipeline, recipe
from wsseg_ray.stages import predictor, refine, rows, supervise  # noqa: F401 (they define row classes)
from wsseg_ray.tables import (
    MAX_SHARD_PIXELS,
    MAX_SHARD_ROWS,
    MAX_SHARDS,
    SHARD_ROWS,
    ImageRow,
    PredictionRow,
    ProposalRow,
    Row,
    ScoreRow,
    columns_of,
    decode,
    encode,
    schema,
    shard_size,
)


def subclasses(kind: type[Row]) -> list[type[Row]]:
    return [found for own in kind.__subclasses__() for found in (own, *subclasses(own))]


pipeline.stages_of(recipe.load("demo"))  # every stage is imported
KINDS = sorted({kind for kind in subclasses(Row) if kind.__module__.startswith("wsseg_ray")}, key=lambda k: k.__name__)


def filled(kind: type[Row]) -> Row:
    """A row with something in every column, of sides 3, 4 and so on."""
    row = kind("a photo")
    for column in dataclasses.fields(kind):
        if "dtype" in column.metadata:
            continue
        sample = {"text": "wörd", "int32": 3, "int64": 4}
        if column.metadata["type"] == pa.string():
            setattr(row, column.name, sample["text"] if column.name != "image_id" else "a photo")
        elif column.metadata["type"] == pa.list_(pa.string()):
            setattr(row, column.name, ["one", "two"])
        elif column.metadata["type"] == pa.list_(pa.binary()):
            setattr(row, column.name, [b"\x00png", b""])
        else:
            setattr(row, column.name, 3 if column.name in ("height", "rows") else 4)
    rng = np.random.default_rng(0)
    arrays = [column for column in dataclasses.fields(kind) if "dtype" in column.metadata]
    for column in sorted(arrays, key=lambda column: len(column.metadata["shape"])):  # sides come from flat columns
        sides = [size(row, side) for side in column.metadata["shape"]]
        setattr(row, column.name, rng.integers(0, 2, sides).astype(column.metadata["dtype"]))
    return row


def size(row: Row, side: str | int) -> int:
    if side == -1:
        return 5
    if isinstance(side, int):
        return side
    value = getattr(row, side)
    return value if isinstance(value, int) else len(value)


def same(one: Row, other: Row) -> bool:
    for name in schema(type(one)).names:
        left, right = getattr(one, name), getattr(other, name)
        if isinstance(left, np.ndarray):
            if left.shape != right.shape or left.dtype != right.dtype or not (left == right).all():
                return False
        elif left != right:
            return False
    return True


def test_there_are_rows_of_all_stages():
    names = {kind.__name__ for kind in KINDS}
    assert names >= {"ImageRow", "PredictionRow", "PhotoRow", "RegionsRow", "ViewsRow", "DistanceRow", "EvidenceRow"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_column_says_its_type_and_meaning(kind):
    for column in dataclasses.fields(kind):
        assert isinstance(column.metadata["type"], pa.DataType), column.name
        about = column.metadata["about"]
        assert len(about) > 3 and not about.endswith("."), column.name
        if "shape" in column.metadata:
            assert about[0] == "(" and ")" in about, f"{kind.__name__}.{column.name}: {about}"
    assert schema(kind).names == [column.name for column in dataclasses.fields(kind)]
    assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}("), "dataclasses write that by themselves"


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_comes_back_as_it_was(kind):
    """With all columns filled, with an error and nothing else, and both in one table."""
    full, failed = filled(kind), kind("b", "broken")
    found = decode(kind, encode(kind, [full, failed, full]))
    assert [type(row) for row in found] == [kind] * 3
    assert same(found[0], full) and same(found[2], full)
    assert same(found[1], failed) and not found[1].is_good
    assert decode(kind, encode(kind, [])) == []


def test_a_slice_of_a_table_is_its_rows():
    every = [filled(ScoreRow), ScoreRow("b", "broken"), filled(ScoreRow)]
    found = decode(ScoreRow, encode(ScoreRow, every).slice(1, 2))
    assert [row.image_id for row in found] == ["b", "a photo"] and same(found[1], every[2])


def test_values_are_stored_as_the_schema_says():
    (row,) = decode(ScoreRow, encode(ScoreRow, [ScoreRow("a", labels=[1, 3], scores=np.eye(2), candidate=[7])]))
    assert row.labels.dtype == np.int32 and row.labels.tolist() == [1, 3]
    assert row.scores.dtype == np.float16 and row.scores.tolist() == [[1, 0], [0, 1]]
    (image,) = decode(ImageRow, encode(ImageRow, [ImageRow("a", height=2**20)]))
    assert image.height == 2**20 and image.uri == "" and image.labels.shape == (0,)


def test_a_column_that_was_not_read_is_no_attribute():
    (row,) = decode(ScoreRow, encode(ScoreRow, [filled(ScoreRow)]).select(["image_id", "labels"]))
    assert len(row.labels) == 5
    with pytest.raises(AttributeError, match="scores"):
        _ = row.scores


def test_what_gives_an_array_its_shape_is_read_too():
    assert columns_of(ProposalRow, ["superpixels"]) == ["superpixels", "height", "width"]
    assert columns_of(ScoreRow, ["image_id", "scores", "labels"]) == ["image_id", "scores", "labels"]
    assert columns_of(ScoreRow, ["area"]) == ["area"]  # a flat list needs no other column
    (row,) = decode(
        ProposalRow, encode(ProposalRow, [filled(ProposalRow)]).select(columns_of(ProposalRow, ["superpixels"]))
    )
    assert row.superpixels.shape == (3, 4)


def test_rows_do_not_share_their_defaults():
    one, other = PredictionRow(), PredictionRow()
    one.networks.append("SN_B")
    assert other.networks == []


@pytest.mark.parametrize("pixels", [0, 160_000, 12_000_000, 50_000_000])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 130, 3131, 10**6, 10**9])
def test_a_shard_is_bounded_in_photos_and_pixels(count, pixels):
    size = shard_size(count, pixels)
    assert 1 <= size <= MAX_SHARD_ROWS and (size == 1 or size * pixels <= MAX_SHARD_PIXELS)
    assert size <= SHARD_ROWS or count > SHARD_ROWS * MAX_SHARDS


def test_shards_grow_with_the_data_set():
    """Two of 12 megapixels, one of 50; and a billion photos are in a million files, or six million of 400 x 500 px."""
    assert [shard_size(count) for count in (10, 600, 3131, 10**5, 10**6, 10**7, 10**9)] == [
        4,
        19,
        32,
        32,
        123,
        1024,
        1024,
    ]
    assert [shard_size(10**9, pixels) for pixels in (200_000, 12_000_000, 50_000_000)] == [160, 2, 1]
