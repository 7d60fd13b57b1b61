"""Pictures of a set that show the same, though their files differ: scaled, or saved again.

    d(a, b) = root mean square of a - b,   a, b: 32 x 32 RGB thumbnails, 0 to 255
    near    d <= 8   and   d^2 <= 0.05 (var a + var b)            the second: two pale pictures are not near for that

Every pair is looked at, and few are computed: the thumbnails are sorted by brightness, and first compared as 4 x 4.
Means of a picture differ by no more than the picture does (Jensen), so that no near pair is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from guda_core.data.dataset import Item
from guda_core.errors import DataError

SIDE, COARSE = 32, 4  # pixels
NEAR, SHARE = 8.0, 0.05
ROWS, PAIRS = 512, 4096  # compared at a time
MANY = 50_000  # pairs that one matrix product compares sooner


@dataclass(frozen=True)
class Alike:
    """Two pictures or more that show the same. between: they are of several groups. leaked: in one group, one of them
    is trained on and another is held out."""

    pictures: tuple[str, ...]
    between: bool
    leaked: bool


@dataclass(frozen=True)
class Copies:
    """found: pictures that show the same, where it matters. unread: those that could not be opened, with the reason."""

    found: tuple[Alike, ...]
    unread: tuple[str, ...] = ()


def find_copies(
    train: Sequence[Item],
    held: Sequence[Item],
    tell: Callable[[float], None] = lambda done: None,
    thumbnail: Callable[[Item], np.ndarray] = lambda item: item.image(SIDE),
) -> Copies:
    """Open every picture, find those that stand in two groups, or on both sides of one. tell: hears the share done.
    thumbnail: reads a picture as (32, 32, 3) uint8."""
    items = [(i, False) for i in train] + [(i, True) for i in held]
    small, at, unread = np.zeros((len(items), SIDE, SIDE, 3), np.uint8), [], []
    for n, (item, _) in enumerate(items):
        try:
            small[n] = thumbnail(item)
            at.append(n)
        except DataError as e:
            unread.append(f"{item.id} ({str(e).split('. ')[0].rstrip('.')})")
        tell((n + 1) / len(items))
    found = []
    for same in alike(small[at]):
        there = [items[at[k]] for k in same]
        sides = {(i.group, out) for i, out in there}
        groups = {g for g, _ in sides}
        if len(sides) > 1:
            found.append(Alike(tuple(i.id for i, _ in there), len(groups) > 1, len(sides) > len(groups)))
    return Copies(tuple(found), tuple(unread))


def alike(thumbnails: np.ndarray) -> list[list[int]]:
    """(N, 32, 32, 3) uint8 -> the places of those that are near each other, two or more together, in order."""
    n = len(thumbnails)
    if n < 2:
        return []
    flat, of = np.unique(thumbnails.reshape(n, -1), axis=0, return_inverse=True)
    pairs = [np.zeros((0, 2), np.int64), *_near(flat)]
    a, b = np.concatenate(pairs).T
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(flat), len(flat)))
    _, named = connected_components(graph, directed=False)
    together: dict[int, list[int]] = {}
    for i, name in enumerate(named[of.ravel()].tolist()):
        together.setdefault(name, []).append(i)
    return [places for places in together.values() if len(places) > 1]


def _near(x: np.ndarray) -> Iterator[np.ndarray]:
    """(N, 3072) uint8 -> (M, 2) places of near pairs, in several parts."""
    bright = x.mean(axis=1)
    order = np.argsort(bright, kind="stable")
    x, bright = x[order], bright[order]
    parts = [_measured(x[i : i + ROWS]) for i in range(0, len(x), ROWS)]
    small, spread = (np.concatenate(p) for p in zip(*parts, strict=True))
    for low in range(0, len(x), ROWS):
        high = min(low + ROWS, len(x))
        end = int(np.searchsorted(bright, bright[high - 1] + NEAR + 0.1, side="right"))
        d2 = _squares(small[low:high], small[low:end])
        a, b = np.nonzero(np.triu(d2 <= NEAR**2 + 1, k=1))  # 1: of rounding
        exact = _exact(x[low:end], high - low, a, b)
        near = (exact <= NEAR**2) & (exact <= SHARE * (spread[low + a] + spread[low + b]))
        yield np.stack([order[low + a[near]], order[low + b[near]]], axis=1)


def _exact(x: np.ndarray, rows: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """d^2 of the pairs (a, b) of x, (N, 3072) uint8, a < rows; by one matrix product where they are many."""
    if len(a) > MANY:
        y = x.astype(np.float32) - 128
        return _squares(y[:rows], y)[a, b]
    parts = [slice(i, i + PAIRS) for i in range(0, len(a), PAIRS)]
    found = [np.square(x[a[p]].astype(np.float32) - x[b[p]]).mean(axis=1) for p in parts]
    return np.concatenate([np.zeros(0, np.float32), *found])


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, D), (M, D) float32 -> (N, M), the mean square of each difference."""
    ones, others = (np.square(v).mean(axis=1) for v in (x, y))
    return ones[:, None] + others - 2 * (x @ y.T) / x.shape[1]


def _measured(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3072) uint8 -> (N, 48) means over blocks, about 0; (N,) variance over the pixels, mean of the colours'."""
    block = SIDE // COARSE
    y = x.reshape(-1, COARSE, block, COARSE, block, 3).astype(np.float32) - 128
    return y.mean(axis=(2, 4)).reshape(len(x), -1), y.reshape(len(x), -1, 3).var(axis=1).mean(axis=1)
