"""A sparse random projection S of gradients, block by block from the seed, never as a whole.

Every parameter goes into 4 of the `dim` coordinates with a random sign (Kane & Nelson 2014). Inner products are kept in
expectation with the variance of a dense +-1 matrix, at 4 additions a parameter instead of `dim`.

S comes from numpy's Philox (Salmon et al. 2011), which counts and does not depend on where it runs. Blocks are made and
multiplied by as many threads as torch uses, and summed in their order: the same bits on every machine, with or without
a GPU, whatever the number of threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from scipy import sparse

from guda_core.diffusion.pace import seconds_of

SPREAD = 4  # coordinates that a parameter goes into
BLOCK = 2**20  # parameters projected at a time
CHUNK = 2**14  # of them whose places are computed at a time, in the processor's cache


class Projection:
    """S as a function. size: parameters. dim: coordinates, a multiple of 4; 0: the identity."""

    def __init__(self, size: int, dim: int, seed: int) -> None:
        self.size, self.dim, self.seed = size, dim, seed

    @property
    def blocks(self) -> int:
        """How many blocks of parameters there are."""
        return -(-self.size // BLOCK)

    def block(self, i: int) -> sparse.csc_matrix:
        """The columns of S of the i-th BLOCK of parameters: (dim, n) with SPREAD entries of +-1/2 a column."""
        return self._made(i, *_room())

    def _made(self, i: int, rows: np.ndarray, signs: np.ndarray) -> sparse.csc_matrix:
        """The block, in these arrays, uint32 each (SPREAD n,)."""
        n, part = min(BLOCK, self.size - i * BLOCK), self.dim // SPREAD
        philox = np.random.Philox(key=np.array([self.seed, i], np.uint64))
        rows, signs = rows[: SPREAD * n], signs[: SPREAD * n]
        (_by_words if part > 1 and part & (part - 1) == 0 else _by_integers)(philox, part, rows, signs)
        at = np.arange(0, n * SPREAD + 1, SPREAD, dtype=np.int32)
        return sparse.csc_matrix((signs.view(np.float32), rows.view(np.int32), at), shape=(self.dim, n))

    def __call__(self, g: np.ndarray) -> np.ndarray:
        """(B, P) float32 -> (B, dim) float32."""
        if not self.dim:
            return g
        out = np.zeros((self.dim, len(g)), np.float32)
        for part in self._parts(g):
            out += part
        return out.T

    def _parts(self, g: np.ndarray) -> Iterator[np.ndarray]:
        """What each block adds, (dim, B), in order."""

        own = threading.local()  # a thread's arrays, used again: fresh memory takes as long as what is written into it

        def of(i: int) -> np.ndarray:
            if not hasattr(own, "room"):
                own.room = _room()
            return self._made(i, *own.room) @ g[:, i * BLOCK : (i + 1) * BLOCK].T

        workers = min(self.blocks, torch.get_num_threads())
        if workers < 2:
            yield from map(of, range(self.blocks))
            return
        begun: deque[Future[np.ndarray]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            for i in range(self.blocks):
                begun.append(pool.submit(of, i))
                if len(begun) > 2 * workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()


def blocks_seconds(projection: Projection, pictures: int = 1) -> float:
    """Seconds to project so many gradients at once here, told from as many blocks as there are threads."""
    some = min(projection.blocks, torch.get_num_threads())
    tried = Projection(min(projection.size, some * BLOCK), projection.dim, projection.seed)
    g = np.zeros((pictures, tried.size), np.float32)
    return seconds_of(lambda: tried(g)) * projection.blocks / some


def _room() -> tuple[np.ndarray, np.ndarray]:
    """Two arrays for the rows and the entries of a block."""
    return np.empty(SPREAD * BLOCK, np.uint32), np.empty(SPREAD * BLOCK, np.uint32)


def _by_integers(philox: np.random.Philox, part: int, rows: np.ndarray, signs: np.ndarray) -> None:
    """Draw the rows and the entries, as the bits of float32, of any number of coordinates."""
    rng = np.random.Generator(philox)
    n = len(rows) // SPREAD
    found = rng.integers(0, part, (n, SPREAD), dtype=np.int32) + part * np.arange(SPREAD, dtype=np.int32)
    rows[:] = found.ravel().view(np.uint32)
    negative = rng.integers(0, 2, (n, SPREAD), dtype=np.int8).ravel() == 0
    signs[:] = np.where(negative, -0.5, 0.5).astype(np.float32).view(np.uint32)


def _by_words(philox: np.random.Philox, part: int, rows: np.ndarray, signs: np.ndarray) -> None:
    """The same for a power of two, from the generator's own words: a row is the highest bits of a word of 32, a sign
    the highest bit of a byte, as `integers` draws them (Lemire 2019; for a power of two it never draws again)."""
    n = len(rows)
    words = philox.random_raw((n + n // SPREAD + 1) // 2).view(np.uint32)
    bytes_ = words[n:].view(np.uint8)
    shift, first = np.uint32(33 - part.bit_length()), np.tile(part * np.arange(SPREAD, dtype=np.uint32), CHUNK)
    for i in range(0, n, len(first)):
        at = slice(i, min(n, i + len(first)))
        np.right_shift(words[at], shift, out=rows[at])
        rows[at] |= first[: at.stop - i]
        np.copyto(signs[at], bytes_[at])
        signs[at] <<= np.uint32(24)
        signs[at] &= np.uint32(0x80000000)
        signs[at] ^= np.uint32(0xBF000000)  # -0.5, and 0.5 where the highest bit is 1
