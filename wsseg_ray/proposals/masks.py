"""Proposals from the masks of any tool: COCO run-length masks in JSON, as SAM and pycocotools write them.

The file is a list, or an object with a list `annotations`, of

    {"segmentation": {"size": [H, W], "counts": "..." or [...]}, "score" | "predicted_iou" | "stability_score": ...}

`counts` are the lengths of alternating runs of 0 and 1 down the columns, as a list or in COCO's compressed string.
They are decoded here, not by pycocotools, because its C code does not check them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np

from wsseg_ray.proposals import MAX_PIXELS, ProposalFileError, Source
from wsseg_ray.proposals.regions import RegionProposals, from_masks

SCORES = ("score", "predicted_iou", "stability_score")
MAX_SCORE = float(np.finfo(np.float32).max)
MAX_DIGITS = 7  # per run in the compressed string, five bits each: more than any photo needs


def read(data: bytes, count: int) -> tuple[RegionProposals, np.ndarray]:
    """The best masks of a file as proposals.

    Objectness is the first of score, predicted_iou and stability_score that every mask has, otherwise the mask's share
    of the photo. Empty masks are dropped. Of equal masks only the best is kept, because each copy would be one more
    vote for its pixels. A mask comes from `segmentation` only; `bbox`, `area` and other fields are not read.

    Arguments:
        data: the file's bytes.
        count: how many masks to take, by objectness, descending; masks of equal objectness keep the file's order.

    Costs a few passes per mask over the runs of all masks together, and one pass over the photo.

    Returns the proposals and their objectness, (N,) float32 descending, N at most `count`.
    Raises ProposalFileError, and no other error, where the file is not valid.
    """
    records = _records(data)
    size = _size(records[0], 0)
    flips = [_flips(record, n, size) for n, record in enumerate(records)]
    areas = np.array([np.diff(flip, append=math.prod(size))[::2].sum() for flip in flips])
    if not areas.any():
        raise ProposalFileError("all masks are empty")
    objectness = _objectness(records, areas / math.prod(size))
    ranked = np.argsort(-objectness, kind="stable")
    best = {flips[n].tobytes(): n for n in ranked[::-1]}
    order = [n for n in ranked if areas[n] > 0 and best[flips[n].tobytes()] == n][:count]
    return _regions([flips[n] for n in order], size), objectness[order]


def _records(data: bytes) -> list[dict]:
    try:
        records = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProposalFileError(f"not JSON: {error}") from error
    if isinstance(records, dict):
        records = records.get("annotations")
    if not isinstance(records, list):
        raise ProposalFileError("must be a list of masks, or an object with a list 'annotations'")
    if not records:
        raise ProposalFileError("no masks")
    return records


def _size(record: dict, n: int) -> tuple[int, int]:
    segmentation = record.get("segmentation") if isinstance(record, dict) else None
    if isinstance(segmentation, list):
        raise ProposalFileError(
            f"mask {n} is a polygon or a list of pixels, not run lengths: COCO.annToRLE converts polygons, "
            "SAM writes run lengths with output_mode='coco_rle'"
        )
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ProposalFileError(f"mask {n} has no 'segmentation' with 'size' and 'counts'")
    size = segmentation["size"]
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ProposalFileError(f"mask {n}: 'size' must be [height, width] in pixels")
    if math.prod(size) > MAX_PIXELS:
        raise ProposalFileError(f"mask {n}: {size[0]} x {size[1]} is more than {MAX_PIXELS} pixels")
    return size[0], size[1]


def _flips(record: dict, n: int, size: tuple[int, int]) -> np.ndarray:
    """Where the mask begins and ends, in pixels down the columns, (F,) int64 ascending; the same for equal masks."""
    if _size(record, n) != size:
        raise ProposalFileError(f"mask {n} is of another size than mask 0")
    counts = record["segmentation"]["counts"]
    pixels = math.prod(size)
    if isinstance(counts, str):
        counts = _decompress(counts, n)
    elif isinstance(counts, list) and all(type(length) is int and abs(length) <= MAX_PIXELS for length in counts):
        counts = np.array(counts, np.int64)
    else:
        raise ProposalFileError(f"mask {n}: 'counts' must be COCO's compressed string, or a list of run lengths")
    if ((counts < 0) | (counts > pixels)).any():
        raise ProposalFileError(f"mask {n}: a run length that is negative or longer than the photo")
    if counts.sum() != pixels:
        raise ProposalFileError(f"mask {n}: the runs cover {counts.sum()} pixels of {size[0]} x {size[1]}")
    ends, times = np.unique(np.cumsum(counts), return_counts=True)
    return ends[(times % 2 == 1) & (ends < pixels)]  # an empty run makes two flips at one place: no change


def _decompress(text: str, n: int) -> np.ndarray:
    """COCO's compressed counts: five bits per character, low bits first; bit 32: the number continues; offset 48.

    From the fourth run on, the number is the difference from the run two places before.
    """
    symbols = np.frombuffer(text.encode("utf-8", errors="surrogatepass"), np.uint8).astype(np.int64) - 48
    if len(symbols) == 0 or symbols.min() < 0 or symbols.max() > 63 or symbols[-1] & 32:
        raise ProposalFileError(f"mask {n}: 'counts' is not COCO's compressed string")
    last = np.flatnonzero(symbols & 32 == 0)
    starts = np.concatenate([[0], last[:-1] + 1])
    digits = last - starts + 1
    if digits.max() > MAX_DIGITS:
        raise ProposalFileError(f"mask {n}: a run length that is larger than any photo")
    place = np.arange(len(symbols)) - np.repeat(starts, digits)
    counts = np.add.reduceat((symbols & 31) << 5 * place, starts)
    counts -= np.where(symbols[last] & 16, 1 << 5 * digits, 0)  # two's complement
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def _objectness(records: list[dict], shares: np.ndarray) -> np.ndarray:
    key = next((key for key in SCORES if all(key in record for record in records)), None)
    if key is None:
        return shares.astype(np.float32)
    scores = [record[key] for record in records]
    for n, score in enumerate(scores):
        if not (type(score) in (int, float) and 0 <= score <= MAX_SCORE):
            raise ProposalFileError(f"mask {n}: '{key}' must be a finite number, not negative")
    return np.array(scores, np.float32)


def _regions(flips: list[np.ndarray], size: tuple[int, int]) -> RegionProposals:
    """Masks as proposals, computed on the intervals between the flips of all masks instead of on pixels."""
    height, width = size
    boundaries = np.unique(np.concatenate([[0, height * width], *flips]))
    interval_count = len(boundaries) - 1

    def masks() -> Iterator[np.ndarray]:
        for flip in flips:
            flipped = np.bincount(np.searchsorted(boundaries, flip), minlength=interval_count)
            yield (np.cumsum(flipped) % 2 == 1)[None, :]

    try:
        regions = from_masks(masks())
    except ValueError as error:
        raise ProposalFileError(str(error)) from error
    columns = np.repeat(regions.superpixels[0], np.diff(boundaries))
    return RegionProposals(columns.reshape(width, height).T, regions.membership)


SOURCE = Source(from_file=read, suffix=".json")
