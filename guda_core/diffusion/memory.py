"""Running out of memory: recognised wherever it comes from, met by smaller batches, explained when that is no help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from guda_core.errors import ScoreError

NO_MEMORY = (
    "There is not enough memory, even for one piece at a time. Close other programs, or use a smaller model or a "
    "machine with more memory."
)
SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
T = TypeVar("T")
R = TypeVar("R")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out. On a CPU torch says so by a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in SIGNS)


def in_batches(run: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], batch: int) -> list[R]:
    """run(part) over parts of at most `batch` items, joined. A part that does not fit into memory is halved, and so are
    those after it.

    Raises:
        ScoreError: not even one item fits.
    """
    out: list[R] = []
    while len(out) < len(items):
        part = items[len(out) : len(out) + batch]
        try:
            out += run(part)
            continue
        except Exception as e:
            if not is_out_of_memory(e):
                raise
            if len(part) == 1:
                raise ScoreError(NO_MEMORY) from e
            batch = len(part) // 2
        if torch.cuda.is_available():  # after the block above, so that the error no longer holds its tensors
            torch.cuda.empty_cache()
    return out
