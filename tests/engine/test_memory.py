"""What is left of the memory, and who is told when it is little."""

import threading

import pytest

from wsseg_ray.engine import memory


def test_the_share_of_this_machine():
    assert 0 < memory.free_share() <= 1


def test_a_container_counts_by_its_own_limit(tmp_path, monkeypatch):
    """Files that are cached can go at any time."""
    files = {"memory.max": "1000", "memory.current": "900", "memory.stat": "anon 500\ninactive_file 300\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "Path", lambda place: tmp_path)
    assert memory._of_container() == pytest.approx(0.4)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._of_container() == 1


def test_it_is_told_once_when_memory_is_low(monkeypatch):
    shares, told = iter([0.5, 0.2, 0.05, 0.04]), threading.Event()
    monkeypatch.setattr(memory, "LOOK_EVERY", 0.001)
    monkeypatch.setattr(memory, "free_share", lambda: next(shares))
    with memory.watched(told.set):
        assert told.wait(60)
    assert next(shares) == 0.04, "it is not looked at again"


def test_nothing_is_told_while_there_is_enough(monkeypatch):
    looked, told = threading.Event(), threading.Event()
    monkeypatch.setattr(memory, "LOOK_EVERY", 0.001)
    monkeypatch.setattr(memory, "free_share", lambda: looked.set() or 0.5)
    with memory.watched(told.set):
        assert looked.wait(60)
    assert not told.is_set()
