"""The lease of a run directory: while a run works in it, a second one is refused.

`lease.json` says who works here, and has a number that grows every BEAT seconds. Whoever finds the lease of a process
of this machine that is gone takes it at once. Of another machine's lease it looks for PATIENCE seconds whether the
number grows: clocks are not compared, they can be hours apart. Object stores have no lock, so two runs that start in
the same second can both believe that they have the lease; the one that lost it finds out at its next beat, and stops.
Until then both write the same files with the same content.
"""

from __future__ import annotations

import _thread
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wsseg_ray.console import say
from wsseg_ray.errors import RecipeError
from wsseg_ray.storage import RunDirectory, StorageError, shown

LEASE = "lease.json"
BEAT = 10.0  # seconds
PATIENCE = 45.0  # seconds without a beat after which a lease of another machine is over


@contextmanager
def held(run: RunDirectory, wait: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Hold the lease of a run directory inside the `with` block.

    Arguments:
        wait: sleeps for some seconds.
    Raises RecipeError where another run has it. Interrupts this process, as Ctrl-C does, where another run takes it.
    """
    _refuse_other(run, wait)
    own = {"owner": uuid.uuid4().hex, "machine": _machine(), "host": socket.gethostname(), **_process(os.getpid())}
    own["since"] = time.strftime("%Y-%m-%d %H:%M:%S %z")
    run.write_json({**own, "beat": 0}, LEASE)
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(run, own, stop), daemon=True, name="lease")
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        if (run.read_json(LEASE) or {}).get("owner") == own["owner"]:
            run.delete(LEASE)


def _beat(run: RunDirectory, own: dict[str, Any], stop: threading.Event) -> None:
    beat = 0
    while not stop.wait(BEAT):
        with suppress(StorageError, OSError):  # the run itself says so where storage stays away
            found = run.read_json(LEASE)
            if found is not None and found["owner"] != own["owner"]:
                say(f"{shown(run.root)} was taken over by {_name(found)}; this run stops")
                _thread.interrupt_main()
                return
            beat += 1
            run.write_json({**own, "beat": beat}, LEASE)


def _refuse_other(run: RunDirectory, wait: Callable[[float], None]) -> None:
    """Return where nobody works in a run directory, or no longer. Raises RecipeError where somebody does."""
    found = run.read_json(LEASE)
    if found is None:
        return
    is_here = found["machine"] == _machine() and found["started"] is not None
    if is_here and _process(found["pid"]) != {key: found[key] for key in ("pid", "started")}:
        return
    if not is_here:
        say(f"{shown(run.root)} may be in use by {_name(found)}: watching for {PATIENCE:.0f} s to find out")
        wait(PATIENCE)
        later = run.read_json(LEASE)
        if later is None or later == found:
            return
        found = later
    raise RecipeError(
        f"{shown(run.root)} is in use by {_name(found)}; wait until it ends, stop it, or give another --run-dir"
    )


def _name(lease: dict[str, Any]) -> str:
    return f"process {lease['pid']} on {lease['host']}, since {lease['since']}"


def _process(pid: int) -> dict[str, Any]:
    """A process, and when it was started, in ticks since the machine was: None where there is no such process, or the
    system does not say."""
    started = None
    with suppress(OSError):
        # A process's name can hold spaces and brackets, so fields are counted from the last bracket. A zombie (Z) has
        # ended.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        started = fields[19] if fields[0] != "Z" else None
    return {"pid": pid, "started": started}


def _machine() -> str:
    """What tells this machine, since it was started, and its processes' numbers from those of others."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()
