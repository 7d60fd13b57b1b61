"""Replacing and removing files that another program may hold for a moment.

Windows refuses both while an antivirus, an indexer, a cloud drive or a reader has the file open: with error 5 (access
denied) or 32 (sharing violation). That mostly passes within milliseconds, so it is tried again. What lasts is raised
as it is. Elsewhere no error has such a number, and nothing waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

HELD = (5, 32)  # Windows' error numbers
WAITS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.9)  # seconds between the tries


def is_held(error: BaseException) -> bool:
    """Whether Windows refused because another program has the file open. It says the same of missing rights."""
    return getattr(error, "winerror", None) in HELD


def replace_file(source: Path, target: Path) -> None:
    """Give a file or folder another name, in place of a file that has it. A file's content is on the disk before: else
    the new name could be there after a power cut, and the content not. Raises OSError: refused, also after 2 s."""
    with suppress(OSError):  # a folder, or one that may not be written to; what is not there is told by the next line
        if source.is_file():
            with source.open("r+b") as f:
                os.fsync(f.fileno())
    _patient(lambda: os.replace(source, target))


def remove_file(path: Path) -> None:
    """Remove a file, if it is there. Raises OSError: refused, also after 2 s."""
    _patient(lambda: path.unlink(missing_ok=True))


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
