"""Long work: claims on what several processes share out, each taking up what no other has in hand; and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from guda_core.errors import OptionError

T = TypeVar("T")


@contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Within the block no other process claims `path`; False where one has it already (with `wait`: wait for it).

    The claim is a lock on <path>.lock, which the system frees however the process ends.

    Raises:
        OptionError: the folder cannot be written to, or knows no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f"{path.name}.lock"))
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as e:
        why = getattr(e, "strerror", None) or e
        raise OptionError(
            f"Nothing can be claimed in '{path.parent}' ({why}). The folder must be one that you may write to, on a "
            "disk that supports file locks."
        ) from e
    try:
        yield True
    finally:
        lock.release()


def shared_out(works: Iterable[T], path: Callable[[T], Path]) -> Iterator[T]:
    """Every work, claimed while the receiver does it: first those that are free, then, waiting, those that others had.

    What others had comes done, if they finished it: the receiver must look.
    """
    left = []
    for work in works:
        with claimed(path(work)) as mine:
            if mine:
                yield work
        if not mine:
            left.append(work)
    for work in left:
        with claimed(path(work), wait=True):
            yield work


def deadline(minutes: float | None) -> float:
    """The moment of `time.monotonic` that is so many minutes away; inf for None.

    Raises:
        OptionError: minutes is not positive.
    """
    if minutes is not None and not minutes > 0:
        raise OptionError(f"minutes must be positive, got {minutes}.")
    return math.inf if minutes is None else time.monotonic() + 60 * minutes
