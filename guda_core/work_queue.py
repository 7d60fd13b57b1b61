"""Long work: claims on what several processes share out, each taking up what no other has in hand; and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from guda_core.errors import OptionError

T = TypeVar("T")
# Where the system knows no locks, filelock would let a file that is there stand for one. Such a file stays when its
# process is killed, and every machine would wait for it. (Earlier versions of filelock have no such word.)
HARD: dict[str, Any] = {"fallback_to_soft": False} if "fallback_to_soft" in signature(FileLock).parameters else {}
if "thread_local" in signature(FileLock).parameters:
    HARD["thread_local"] = False  # it is let go by whichever thread ends the work


@contextmanager
def claimed(path: Path, *, wait: bool = False, until: float = math.inf) -> Iterator[bool]:
    """Within the block no other process claims `path`; False where one has it already. wait: for it, but no longer than
    to this moment of `time.monotonic`.

    The claim is a lock on <path>.lock, which the system frees however the process ends.

    Raises:
        OptionError: the folder cannot be written to, or knows no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f"{path.name}.lock"), **HARD)
        _acquire(lock, until if wait else -math.inf)
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


def _acquire(lock: BaseFileLock, until: float) -> None:
    """Raises Timeout: another process has the lock. NotImplementedError: it would be no lock of the system."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        left = until - time.monotonic()
        if left <= 0 or isinstance(lock, SoftFileLock):
            _refuse_soft(lock)
            raise
        lock.acquire(timeout=-1 if math.isinf(left) else left)
    _refuse_soft(lock)


def _refuse_soft(lock: BaseFileLock) -> None:
    if isinstance(lock, SoftFileLock):
        lock.release()
        raise NotImplementedError("it knows no file locks")


def shared_out(works: Iterable[T], path: Callable[[T], Path], until: float = math.inf) -> Generator[T, None, None]:
    """Every work, claimed while the receiver does it: first those that are free, then, waiting, those that others had.
    until: the moment of `time.monotonic` when waiting ends.

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
        with claimed(path(work), wait=True, until=until) as mine:
            if not mine:
                return
            yield work


def deadline(minutes: float | None) -> float:
    """The moment of `time.monotonic` that is so many minutes away; inf for None.

    Raises:
        OptionError: minutes is not positive.
    """
    if minutes is not None and not minutes > 0:
        raise OptionError(f"minutes must be positive, got {minutes}.")
    return math.inf if minutes is None else time.monotonic() + 60 * minutes
