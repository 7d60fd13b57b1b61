"""Running out of memory: recognised wherever it comes from, met by smaller batches, explained when that is no help."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from guda_core.errors import ScoreError

MEND = "Close other programs, or use a smaller model or a machine with more memory."
NO_MEMORY = f"There is not enough memory, even for one piece at a time. {MEND}"
SIGNS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory",
    "cublas_status_alloc_failed", "cudnn_status_alloc_failed", "hipblas_status_alloc_failed",
    "unable to find an engine", "valid cudnn algorithm",  # cuDNN, which has no room to work in
    "paging file is too small", "(os error 1455)",
)  # fmt: skip
WINDOWS = (8, 14, 1455)  # its codes: not enough memory, out of memory, the paging file is too small
T = TypeVar("T")
R = TypeVar("R")


def lacked_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, or what did so was the cause: libraries that read files hide it behind an error of their
    own."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out. Torch may say so by a plain RuntimeError, a system by an OSError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) in WINDOWS
    return isinstance(error, RuntimeError | OSError) and any(s in str(error).lower() for s in SIGNS)


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
