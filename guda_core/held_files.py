"""Replacing and removing files that another program may hold for a moment.

Windows refuses both while an antivirus, an indexer, a cloud drive or a reader has the file open: with error 5 (access
denied) or 32 (sharing violation). That mostly passes within milliseconds, so it is tried again. What lasts is raised
as it is. Elsewhere no error has such a number, and nothing waits.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

PART = ".part-"  # how the name of a file begins that is not written whole yet
LEFT_S = 86_400.0
HELD = (5, 32)  # Windows' error numbers
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS)  # a disk cannot be asked for it
FULL = (errno.ENOSPC, errno.EDQUOT)
STREAMS = (("/", "dev", "stdout"), ("/", "dev", "stderr"), ("/", "dev", "fd"))
WAITS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.9)  # seconds between the tries


def is_held(error: BaseException) -> bool:
    """Whether Windows refused because another program has the file open. It says the same of missing rights."""
    return getattr(error, "winerror", None) in HELD


def move_file(source: Path, target: Path) -> None:
    """Give a file or folder another name, in place of a file that has it. Raises OSError: refused, also after 2 s."""
    _patient(lambda: os.replace(source, target))


def replace_file(source: Path, target: Path) -> None:
    """As `move_file`, of a new file. Its content is on the disk before: else the new name could be there after a power
    cut, and the content not. Raises OSError: as `move_file`, or the content does not get there; some disks tell only
    then that they are full."""
    _bring_to_disk(source)
    move_file(source, target)


def _bring_to_disk(path: Path) -> None:
    try:
        f = path.open("r+b")
    except OSError:  # a folder, or another program holds it
        return
    with f:
        try:
            os.fsync(f.fileno())
        except OSError as e:
            if e.errno not in NO_SYNC:
                raise


def remove_file(path: Path) -> None:
    """Remove a file, if it is there. Raises OSError: refused, also after 2 s."""
    _patient(lambda: path.unlink(missing_ok=True))


def remove_left(folder: Path) -> None:
    """Remove what killed processes left of files that they wrote into a folder by `replacing`: untouched for a day."""
    for path in folder.glob(f"{PART}*"):
        with suppress(OSError):  # another one does
            if time.time() - path.stat().st_mtime > LEFT_S:
                remove_file(path)


@contextmanager
def replacing(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """Gives a path in the same folder to write a file to, which at the end of the block takes the place of `path`: a
    reader sees the old file or the new one, never a part. Where anything goes wrong, the old one stays and nothing is
    left behind. alone: no other process writes this file meanwhile, so the path is the same every time, and what a
    killed process left there is written over. Raises OSError."""
    aside = path.with_name(f"{PART}{path.name if alone else uuid4().hex}")
    try:
        yield aside
        replace_file(aside, path)
    finally:
        with suppress(OSError):  # such as where a file stands in the folder's place
            remove_file(aside)


def is_stdout(path: Path) -> bool:
    """Whether a path leads to where this program's output goes, as /dev/stdout does."""
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):  # no such file, no path, no stdout
        return False


def write_anywhere(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file in one go, and its folders. A link goes on leading where it leads. Where nothing may take the place
    of what is there - a pipe, the terminal, an open file that /dev/fd or /proc names - it is written into. Raises
    OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_stdout(path):  # opened anew it would lose what stands there
        try:
            sys.stdout.flush()
            sys.stdout.buffer.writelines(pieces)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # the reader has had enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif (path.exists() and not path.is_file()) or path.parts[:3] in STREAMS or path.parts[:2] == ("/", "proc"):
        with path.open("wb") as f:
            f.writelines(pieces)
    else:
        with replacing(path.resolve()) as aside, aside.open("wb") as f:
            f.writelines(pieces)


def check_writable(folder: Path) -> None:
    """Write a file into a folder and remove it. Raises OSError: it may not be written to.

    To be asked before `tempfile`, which takes Windows' "access is denied" for a name that is taken, and tries two
    thousand million more."""
    tried = folder / f".guda-{uuid4().hex}"
    file = tried.open("xb")
    try:
        with file:
            file.write(b"tried")
    finally:
        with suppress(OSError):
            remove_file(tried)


def advice(error: BaseException, otherwise: str) -> str:
    """What to do about a file that could not be written: the beginning of a sentence."""
    return "Close the program that has the file open" if is_held(error) else otherwise


def mend(error: BaseException) -> str:
    """What to do about a file that could not be written where it was wanted: a sentence."""
    full = getattr(error, "errno", None) in FULL
    what = advice(error, "Free some space" if full else "")
    return f"{what} or name another place." if what else "Name another place."


def _patient(work: Callable[[], None]) -> None:
    for wait in WAITS:
        try:
            work()
        except OSError as e:
            if not is_held(e):
                raise
            time.sleep(wait)
        else:
            return
    work()
