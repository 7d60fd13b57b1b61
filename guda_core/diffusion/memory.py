"""Running out of memory: recognised wherever it comes from, met by smaller batches, explained when that is no help."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from guda_core.errors import LACKS, ModelError, NoMemoryError, causes

MEND = "Close other programs, or use a smaller model or a machine with more memory."
NO_MEMORY = f"{LACKS} {MEND}"
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
    """Whether memory ran out, or what did so was the cause."""
    return any(is_out_of_memory(e) for e in causes(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out. Torch may say so by a plain RuntimeError, a system by an OSError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) in WINDOWS
    return isinstance(error, RuntimeError | OSError) and any(s in str(error).lower() for s in SIGNS)


@contextmanager
def damaged(what: str) -> Iterator[None]:
    """Within the block an error is a ModelError that says what is damaged; a lack of memory stays what it is."""
    try:
        yield
    except Exception as e:
        if lacked_memory(e):
            raise
        raise ModelError(f"{what}: {e}") from e


class Fitting:
    """How many items fit into memory at once, as far as is known. Whoever keeps it does not try more again.

    size: items; half as many each time that memory runs out.
    """

    def __init__(self, size: int) -> None:
        self.size = size


def as_fits(run: Callable[[int], R], most: int, fits: Fitting) -> R:
    """run(n), n = as many as fit, at most `most`.

    Raises:
        NoMemoryError: not even one fits.
    """
    while True:
        n = min(most, fits.size)
        try:
            return run(n)
        except Exception as e:
            fewer(e, n, fits)
        let_go()


def fewer(error: Exception, n: int, fits: Fitting) -> None:
    """After an error with n items: half as many from now on. `let_go` belongs after the `except` block.

    Raises:
        NoMemoryError: it was one item. The error itself, where it is not of memory.
    """
    if not is_out_of_memory(error):
        raise error
    if n <= 1:
        raise NoMemoryError(NO_MEMORY) from error
    fits.size = n // 2


def let_go() -> None:
    """Give a GPU what torch keeps there and does not use; once no error holds tensors any more."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_batches(run: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], batch: int | Fitting) -> list[R]:
    """run(part) over parts of at most `batch` items, joined. A part that does not fit into memory is halved, and so are
    those after it; those of later calls too, where a `Fitting` is given.

    Raises:
        NoMemoryError: not even one item fits.
    """
    fits = batch if isinstance(batch, Fitting) else Fitting(batch)
    out: list[R] = []
    while len(out) < len(items):
        left = items[len(out) :]
        out += as_fits(lambda n, left=left: run(left[:n]), len(left), fits)
    return out


def free_bytes(device: torch.device) -> int:
    """Bytes that can be had on a GPU: those that are free, and those that torch keeps there and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
