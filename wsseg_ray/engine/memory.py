"""How much memory the machine has left: so a process that was killed for memory is told apart from one that crashed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOW = 0.1  # share of the memory; Ray kills workers when half of that is left
LOOK_EVERY = 0.05  # seconds


def free_share() -> float:
    """The share of the memory that is free: of the machine, or of this container where that has less; 1: not known."""
    return min(_of_machine(), _of_container())


def _of_machine() -> float:
    with suppress(OSError, KeyError):
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        numbers = {words[0]: int(words[1]) for words in lines}
        return numbers["MemAvailable:"] / numbers["MemTotal:"]
    return 1.0


def _of_container() -> float:
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, KeyError):
        most = int((group / "memory.max").read_text())  # "max" where there is no limit
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(parts["inactive_file"])
        return 1 - used / most
    return 1.0


@contextmanager
def watched(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` once, from a thread, if the memory runs low inside the `with` block."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY):
            if free_share() < LOW:
                tell()
                return

    thread = threading.Thread(target=watch, daemon=True, name="memory")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
