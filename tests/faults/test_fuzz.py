"""A thousand broken inputs through the real readers: each gives a result or a clean failure, and nothing else.

A clean failure is a message for a person: `guard` marks an exception that nobody foresaw as `unexpected`. Time and
memory are bounded by the limits of a process of its own: CPU seconds and address space.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.proposals import test_masks, test_mcg
from tests.runs import empty_job
from wsseg_ray import datasets, recipe
from wsseg_ray.datasets import demo
from wsseg_ray.engine.local import photo_kernel
from wsseg_ray.engine.shards import guard
from wsseg_ray.engine.stage import Job, Stage
from wsseg_ray.errors import DatasetError, RecipeError
from wsseg_ray.recipe import DatasetSection
from wsseg_ray.stages import images, proposals
from wsseg_ray.stages.rows import PhotoRow
from wsseg_ray.tables import ImageRow, Row

EACH = 200  # broken inputs of each kind
CPU_SECONDS = 240  # of all together
GROWTH = 2**30  # bytes of memory that reading small broken files may take beyond what imports took
NASTY = [
    b"\x00",
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"-1",
    b"1e999",
    b"NaN",
    b"../../etc/passwd",
    b'"',
    b"{",
    b"[" * 999,
]


def broken(seed: bytes, rng: np.random.Generator) -> bytes:
    """A file after one to four accidents: bits, bytes, nasty words, cuts, repetitions."""
    data = bytearray(seed)
    for _ in range(rng.integers(1, 5)):
        place, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 64))
        accident = rng.integers(6)
        if accident == 0 and place < len(data):
            data[place] ^= 1 << int(rng.integers(8))
        elif accident == 1:
            data[place : place + length] = rng.bytes(length)
        elif accident == 2:
            data[place:place] = NASTY[rng.integers(len(NASTY))]
        elif accident == 3:
            del data[place:]
        elif accident == 4:
            data[place:place] = data[place : place + length] * int(rng.integers(1, 50))
        else:
            del data[place : place + length]
    return bytes(data)


def job(folder: Path, **settings: str) -> Job:
    return empty_job(folder / "run", *(f"{key}={value}" for key, value in settings.items()))


def look(stage: Stage, made: Job, row: Row) -> Row:
    """What the only step of a stage makes of a row."""
    (step,) = stage.work(made).steps
    return guard(photo_kernel(made, step), step.row, row)


def photo_seed(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(demo.draw_photo(0, 1)[0]).save(buffer, form)
    return buffer.getvalue()


def read_photo(folder: Path, data: bytes) -> str:
    (folder / "photo.jpg").write_bytes(data)
    row = look(images.STAGE, job(folder), ImageRow("a", uri=str(folder / "photo.jpg")))
    assert row.error or (row.height > 0 and row.width > 0)
    return row.error


def read_proposals(source: str, suffix: str, size: tuple[int, int], folder: Path, data: bytes) -> str:
    (folder / f"a{suffix}").write_bytes(data)
    made = job(folder, **{"proposals.source": source, "proposals.root": str(folder), "hcp.min_area": "0"})
    row = look(proposals.STAGE, made, PhotoRow("a", height=size[0], width=size[1]))
    assert row.error or len(row.indptr) > 1
    return row.error


def read_labels(name: str, folder: Path, data: bytes) -> str:
    (folder / name).write_bytes(data)
    (folder / "one.jpg").write_bytes(b"")
    try:
        found = datasets.list_photos(
            DatasetSection(layout="folder", root=str(folder), train_split="train", val_split="val")
        )
    except DatasetError as error:
        return str(error)
    usable = [photo for photo in found.photos if not photo.error]
    assert all(Path(photo.uri).is_relative_to(folder) and "/" not in photo.image_id for photo in usable)
    return ""


def read_recipe(folder: Path, data: bytes) -> str:
    (folder / "r.yaml").write_bytes(data)
    try:
        recipe.load(str(folder / "r.yaml"))
    except RecipeError as error:
        return str(error)
    return ""


CSV = b'file,labels,split\none.jpg,dog;person,train\nsub/two.png,cat,val\n"th,ree.jpg",dog,train\n'
JSON = json.dumps(
    [
        {"file": "one.jpg", "labels": ["dog", "cat"], "split": "train"},
        {"file": "b.png", "labels": ["cat"], "split": "val"},
    ]
)
MASKS = [test_masks.record(np.eye(9, dtype=bool), score=0.5), test_masks.record(np.ones((9, 9), bool), score=0.25)]
KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path, bytes], str]]] = {
    "jpeg": (partial(photo_seed, "JPEG"), read_photo),
    "png": (partial(photo_seed, "PNG"), read_photo),
    "mat5": (test_mcg.mat5, partial(read_proposals, "mcg", ".mat", (2, 3))),
    "mat73": (test_mcg.mat73, partial(read_proposals, "mcg", ".mat", (2, 3))),
    "masks": (lambda: test_masks.dump(MASKS), partial(read_proposals, "masks", ".json", (9, 9))),
    "csv": (lambda: CSV, partial(read_labels, "labels.csv")),
    "json": (JSON.encode, partial(read_labels, "labels.json")),
    "recipe": (lambda: yaml.safe_dump(recipe.load("demo").model_dump()).encode(), read_recipe),
}


def fuzz(folder: Path) -> dict[str, tuple[int, list[str]]]:
    """Of each kind: how many broken inputs were refused with a word, and what is not clean."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GROWTH, used + GROWTH))
    return {kind: fuzz_kind(*KINDS[kind], folder / kind) for kind in KINDS}


def fuzz_kind(make: Callable[[], bytes], read: Callable[[Path, bytes], str], folder: Path) -> tuple[int, list[str]]:
    folder.mkdir()
    seed = make()
    assert read(folder, seed) == "", "the input is good before it is broken"
    before, refused, unclean = set(folder.parent.rglob("*")), 0, []
    for number in range(EACH):
        error = read(folder, broken(seed, np.random.default_rng(number)))
        refused += bool(error)
        if error.startswith("unexpected") or (error and len(error) < 10):
            unclean.append(f"{number}: {error}")
    return refused, [*unclean, *(f"wrote {path}" for path in set(folder.parent.rglob("*")) - before)]


@pytest.mark.run
def test_broken_inputs_give_a_result_or_a_clean_failure(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(fuzz, (tmp_path,))
    assert {kind: unclean for kind, (_, unclean) in found.items() if unclean} == {}
    assert all(EACH / 10 < refused <= EACH for refused, _ in found.values()), found
