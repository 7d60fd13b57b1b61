"""What is costly to make and always the same: made once in a run of the tests, by whichever process needs it first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

PLACE = "TESTS_MADE_ONCE"  # the folder; `conftest` sets it, and processes that tests start inherit it


def kept(name: str, make: Callable[[Path], object]) -> Path:
    """A folder with what `make` writes into the folder that it is given. It is for reading only."""
    folder = Path(os.environ[PLACE]) / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            begun = folder.with_name(f"{name}.begun")
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir()
            make(begun)
            begun.rename(folder)
    return folder


def copied(name: str, folder: Path, make: Callable[[Path], object]) -> None:
    """The same as a copy of one's own, in `folder`. Outside of the tests it is made there."""
    if PLACE in os.environ:
        shutil.copytree(kept(name, make), folder, dirs_exist_ok=True)
    else:
        make(folder)
