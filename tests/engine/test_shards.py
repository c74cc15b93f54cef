"""The work on one shard: errors cost their own row alone, and a photo that kills processes is found."""

import threading
from functools import partial

import pytest
import torch

from tests.runs import empty_job, equal
from wsseg_ray.engine import memory
from wsseg_ray.engine.shards import (
    COUNTED,
    MAX_DEATHS,
    MAX_STARVED,
    TRIES,
    OnOneThread,
    Tally,
    each,
    guard,
    step_name,
)
from wsseg_ray.engine.stage import Step
from wsseg_ray.storage import RunDirectory, StorageError
from wsseg_ray.tables import IMAGES, ImageRow, Row, ScoreRow

PLACE = ("images", "train-00000", "write")
NOTE = (TRIES, "images", "train-00000-write.json")


def upper(row: Row) -> ImageRow:
    return ImageRow(uri=row.image_id.upper())


def raising(error: Exception):
    def kernel(row: Row) -> Row:
        raise error

    return kernel


def test_a_row_keeps_its_name():
    found = guard(upper, ImageRow, Row("a"))
    assert (found.image_id, found.uri, found.error) == ("a", "A", "")


def test_a_row_with_an_error_is_passed_on_as_it_is():
    found = guard(raising(AssertionError), ScoreRow, ImageRow("a", "no photo", uri="x"))
    assert type(found) is ScoreRow and equal(found, ScoreRow("a", "no photo"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("not today"), "not today"),
        (OSError(2, "No such file"), "[Errno 2] No such file"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_a_kernel_foresees_is_its_message(error, words):
    assert equal(guard(raising(error), ImageRow, Row("a")), ImageRow("a", words))


def test_a_surprise_says_where_it_was():
    found = guard(raising(KeyError("surprise")), ImageRow, Row("a"))
    assert found.error.startswith("unexpected KeyError at test_shards.py:") and "surprise" in found.error


def test_storage_that_fails_is_no_photos_fault():
    with pytest.raises(StorageError):
        guard(raising(StorageError("gone")), ImageRow, Row("a"))


def test_a_gpu_that_fails_is_no_photos_fault():
    """After such an error each call of the process fails, so photo after photo would be recorded as failed."""
    with pytest.raises(RuntimeError, match=r"a GPU of .* failed.*illegal memory access.*run again to go on"):
        guard(raising(RuntimeError("CUDA error: an illegal memory access was encountered")), ImageRow, Row("a"))
    assert "out of memory" in guard(raising(RuntimeError("CUDA out of memory.")), ImageRow, Row("a")).error


def test_a_shard_leaves_no_note(tmp_path):
    job, seen = empty_job(tmp_path), []

    def kernel(row: Row) -> Row:
        seen.append(job.run.read_json(*NOTE))
        return upper(row)

    rows, seconds = each(job, PLACE, kernel, ImageRow, [Row("a"), Row("b")])
    assert [row.uri for row in rows] == ["A", "B"] and seconds > 0
    assert seen == [{"at": "", "died": {}, "starved": {}}] * 2, "it is written once: most shards die of nothing"
    assert not job.run.exists(*NOTE)


class Died(BaseException):
    """Stands for the death of the process: nothing is tidied up by the kernel's caller."""


def dies_of_bad(tried: list[str], row: Row) -> Row:
    tried.append(row.image_id)
    if row.image_id == "bad":
        raise Died
    return upper(row)


def test_a_photo_that_kills_every_process_is_found_and_given_up(tmp_path):
    job, tried, rows = empty_job(tmp_path), [], [Row("a"), Row("bad"), Row("c")]
    kernel = partial(dies_of_bad, tried)
    for _ in range(1 + MAX_DEATHS):
        with pytest.raises(Died):
            each(job, PLACE, kernel, ImageRow, rows)
    found, _ = each(job, PLACE, kernel, ImageRow, rows)
    assert [row.uri for row in found] == ["A", "", "C"]
    assert found[1].error == "images died each time it worked on this photo"
    assert tried.count("bad") == 1 + MAX_DEATHS and not job.run.exists(*NOTE)


def test_a_photo_for_which_there_is_no_memory_has_more_tries_and_is_told_apart(tmp_path, monkeypatch):
    """The processes of other photos may have taken it."""
    job, tried = empty_job(tmp_path), []
    monkeypatch.setattr(memory, "free_share", lambda: 0.05)

    def kernel(row: Row) -> Row:
        tried.append(row.image_id)
        while row.image_id == "large" and len(tried) > 2 and not job.run.read_json(*NOTE).get("short"):
            pass  # memory runs low while the photo is worked on
        if row.image_id == "large":
            raise Died
        return upper(row)

    rows = [Row("a"), Row("large")]
    for _ in range(1 + MAX_STARVED):
        with pytest.raises(Died):
            each(job, PLACE, kernel, ImageRow, rows)
    found, _ = each(job, PLACE, kernel, ImageRow, rows)
    assert tried.count("large") == 1 + MAX_STARVED and found[0].uri == "A"
    assert found[1].error.startswith(
        "images had too little memory each time it worked on this photo alone: set dataset.m"
    )


def test_two_photos_that_kill_are_both_found(tmp_path):
    job, deaths = empty_job(tmp_path), 0

    def kernel(row: Row) -> Row:
        if "bad" in row.image_id:
            raise Died
        return upper(row)

    while True:
        try:
            found, _ = each(job, PLACE, kernel, ImageRow, [Row("bad 1"), Row("a"), Row("bad 2")])
            break
        except Died:
            deaths += 1
    assert [bool(row.error) for row in found] == [True, False, True]
    assert deaths == 1 + 2 * MAX_DEATHS


def test_steps_have_names_of_their_own():
    task, actor = Step(upper, ImageRow), Step(upper, ImageRow, actor=True)
    assert [step_name(task, False), step_name(actor, False), step_name(task, True)] == ["read", "actor", "write"]


def test_the_file_of_a_shard(tmp_path):
    job = empty_job(tmp_path)
    job.run.write_shard(IMAGES, "train-00000", [ImageRow("a", uri="A")])
    assert [row.uri for row in job.run.rows(IMAGES)] == ["A"]


@pytest.mark.parametrize(
    ("counts", "resumed", "refused"),
    [((3, 3), False, True), ((3, 2), False, False), ((3, 3), True, False), ((0, 0), False, False)],
)
def test_where_all_photos_fail_none_is_at_fault(tmp_path, counts, resumed, refused):
    """Unless others were good in an earlier session."""
    photos, failed = counts
    tally = Tally(empty_job(tmp_path), "score", IMAGES)
    tally.add("train-00000", photos, ["no GPU"] * failed)
    if refused:
        with pytest.raises(RuntimeError, match="score: all 3 photos failed, one with: no GPU"):
            tally.refuse_all_failed(resumed)
    else:
        tally.refuse_all_failed(resumed)


def test_a_tally_is_written_when_all_is_well_alone(tmp_path):
    """After an error the storage may be what failed; the counts stand in the shards' files too."""
    job = empty_job(tmp_path)
    with pytest.raises(StorageError), Tally(job, "score", IMAGES) as tally:
        tally.add("train-00000", 3, [])
        raise StorageError
    assert not job.run.exists("images", COUNTED)
    for shard, count in (("train-00000", 3), ("train-00001", 2)):
        with Tally(job, "score", IMAGES) as tally:
            tally.add(shard, count, ["no"])
    assert job.run.read_json("images", COUNTED) == {"train-00000": [3, 1], "train-00001": [2, 1]}


def test_the_first_try_of_a_shard_asks_nothing_of_the_store(tmp_path, monkeypatch):
    job = empty_job(tmp_path)
    for call in ("read_bytes", "write_bytes", "delete"):
        monkeypatch.setattr(RunDirectory, call, lambda *_: pytest.fail("a request"))
    found, _ = each(job, PLACE, lambda row: upper(row), ImageRow, [Row("a"), Row("b")], attempt=0)
    assert [row.uri for row in found] == ["A", "B"]


def test_a_shard_that_is_tried_again_goes_photo_by_photo(tmp_path):
    """The death of the first try left no note; so a photo that kills has as many tries as where there was one."""
    job, tried, rows = empty_job(tmp_path), [], [Row("a"), Row("bad"), Row("c")]
    kernel = partial(dies_of_bad, tried)
    for attempt in range(1 + MAX_DEATHS):
        with pytest.raises(Died):
            each(job, PLACE, kernel, ImageRow, rows, attempt=attempt)
    found, _ = each(job, PLACE, kernel, ImageRow, rows, attempt=1 + MAX_DEATHS)
    assert [bool(row.error) for row in found] == [False, True, False]
    assert tried.count("bad") == 1 + MAX_DEATHS and not job.run.exists(*NOTE)


class Many:
    """A kernel that can take rows together."""

    def __init__(self, error: Exception | None = None, room: int = 0) -> None:
        self.calls: list[int] = []
        self._error, self._room = error, room

    def __call__(self, row: Row) -> ImageRow:
        self.calls.append(1)
        return upper(row)

    def many(self, rows: list[Row]) -> list[ImageRow]:
        self.calls.append(len(rows))
        if self._error and len(rows) > self._room:
            raise self._error
        return [upper(row) for row in rows]


def test_rows_are_taken_together_where_the_kernel_can(tmp_path):
    kernel = Many()
    rows, _ = each(empty_job(tmp_path), PLACE, kernel, ImageRow, [Row("a"), Row("b")])
    assert kernel.calls == [2] and [(row.image_id, row.uri) for row in rows] == [("a", "A"), ("b", "B")]


@pytest.mark.parametrize("given", [[Row("a"), Row("b")], [Row("a"), Row("b", "broken")]])
def test_rows_are_taken_one_by_one_where_together_they_cannot(tmp_path, given):
    kernel = Many(MemoryError("no memory for both"))
    rows, _ = each(empty_job(tmp_path), PLACE, kernel, ImageRow, given)
    assert [row.uri for row in rows if not row.error] == [row.image_id.upper() for row in given if not row.error]
    assert kernel.calls[-1] == 1 and [row.error for row in rows] == [row.error for row in given]


@pytest.mark.parametrize(("room", "calls"), [(3, [7, 3, 4, 2, 2]), (0, [7, 3, 1, *[1] * 7])])
def test_a_gpu_without_room_for_all_rows_gets_halves(tmp_path, room, calls):
    kernel = Many(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), room)
    rows, _ = each(empty_job(tmp_path), PLACE, kernel, ImageRow, [Row(name) for name in "abcdefg"])
    assert [(row.image_id, row.uri) for row in rows] == [(name, name.upper()) for name in "abcdefg"]
    assert kernel.calls == calls


def test_a_suspect_shard_is_taken_one_by_one(tmp_path):
    job, kernel = empty_job(tmp_path), Many()
    job.run.write_json({"at": "", "died": {}, "starved": {}}, *NOTE)
    each(job, PLACE, kernel, ImageRow, [Row("a"), Row("b")])
    assert kernel.calls == [1, 1]


def test_rows_of_an_actor_are_worked_on_at_once(tmp_path):
    """Three threads meet in the kernel; the rows keep their order. A suspect shard is taken one by one."""
    job, meeting = empty_job(tmp_path), threading.Barrier(3, timeout=60)

    def kernel(row: Row) -> Row:
        meeting.wait()
        return upper(row)

    rows = [Row(name) for name in "abcdef"]
    found, _ = each(job, PLACE, kernel, ImageRow, rows, at_once=3)
    assert [row.uri for row in found] == list("ABCDEF")
    job.run.write_json({"at": "", "died": {}, "starved": {}}, *NOTE)
    busy = threading.Lock()

    def alone(row: Row) -> Row:
        assert busy.acquire(blocking=False)
        busy.release()
        return upper(row)

    each(job, PLACE, alone, ImageRow, rows, at_once=3)


def test_threads_of_an_actor_have_one_thread_of_torch_each(tmp_path):
    """From their first row to their last; afterwards the process has as many as before."""
    torch.set_num_threads(2)
    meeting, seen = threading.Barrier(2, timeout=60), []

    def kernel(row: Row) -> Row:
        seen.append(torch.get_num_threads())
        meeting.wait()
        return upper(row)

    each(empty_job(tmp_path), PLACE, OnOneThread(kernel), ImageRow, [Row(name) for name in "abcd"], at_once=2)
    assert seen == [1] * 4 and torch.get_num_threads() == 2
