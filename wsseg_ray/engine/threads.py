"""Work on several photos at once in one process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def one_thread_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads, each of which computes on one thread of torch.

    The number of torch's threads is in part the whole process's, so it is 1 until all of them are done: else one that
    has done a photo could give another one more threads in the middle of its photo.
    """
    import torch

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)
