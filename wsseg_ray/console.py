"""Output of a run: one line per stage on the terminal; everything else goes to the run's log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal

_screen: TextIO | None = None


def say(text: str) -> None:
    """Print a line on the terminal."""
    tqdm.write(text, file=_screen or sys.stderr)
    (_screen or sys.stderr).flush()


@contextmanager
def chatter_to(log: Path) -> Iterator[None]:
    """Send the output of this process and its libraries to a file; `say` and `Progress` still print on the terminal.

    Ray prints from C++ too, so the file descriptors are redirected.
    """
    global _screen
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as sink, os.fdopen(os.dup(2), "w", buffering=1) as _screen:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
            _screen = None


class Progress:
    """A progress bar on a terminal; without a terminal, a line every ten seconds and one at the end."""

    def __init__(self, name: str, unit: str, total: int) -> None:
        self._name, self._unit, self._total, self._count = name, unit, total, 0
        self._note, self._start, self._last = "", time.monotonic(), time.monotonic()
        screen = _screen or sys.stderr
        self._bar = None
        if screen.isatty():
            self._bar = tqdm(total=total, desc=f"{name:<16}", unit=unit, file=screen, leave=False)

    def advance(self, count: int, note: str = "") -> None:
        if (count, note) == (0, self._note):
            return
        self._count, self._note = self._count + count, note
        if self._bar is not None:
            self._bar.set_postfix_str(note)
            self._bar.update(count)
        elif time.monotonic() - self._last > LINE_EVERY:
            self._last = time.monotonic()
            say(f"{self._name:<16} {self._count} of {self._total} {self._unit}  {note}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        say(f"{self._name:<16} {time.monotonic() - self._start:6.1f} s  {self._note}")
