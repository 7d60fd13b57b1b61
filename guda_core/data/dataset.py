"""Training pictures, whatever they come from: an item, a set of them with groups and splits, and its array form.

A `GroupDataset` answers three questions: which groups there are, which items a split holds, and what hash stands for
them. Everything that learns from pictures (unlearning, features, trainings) asks it and nothing else.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from PIL import Image

from guda_core.data.groups import normal
from guda_core.data.images import shaped
from guda_core.diffusion.sizes import nearest
from guda_core.errors import DataError
from guda_core.machine import reserve
from guda_core.records import GroupSet

SPLITS = ("train", "held_out", "pretrain")
LARGE = 2**30  # bytes of pixels above which they lie on the disk


def fitted(pixels: np.ndarray, size: int) -> np.ndarray:
    """Square (H, H, 3) uint8 as (size, size, 3), by Lanczos; the same array where it has that size already. A picture
    of another shape keeps it, as nearly as the sizes of that resolution allow (`diffusion.sizes`)."""
    height, width = pixels.shape[:2]
    if height != width:
        wanted = nearest(width, height, size)
        return pixels if wanted == (width, height) else np.asarray(shaped(Image.fromarray(pixels), wanted))
    if (height, width) == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))


def middle(pixels: np.ndarray) -> np.ndarray:
    """The square in the middle, (..., S, S, 3), of pictures (..., H, W, 3); a square picture as it is."""
    height, width = pixels.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[..., top : top + side, left : left + side, :]


@dataclass(frozen=True)
class Item:
    """One training picture, not yet opened; or, without `read`, only what a prompt is about.

    id: unique in its set, "<group>/<name>". group: id of its group. caption: as written beside the picture, "" where
    nothing is. concept: what it shows, "" where that is not known. read: size -> (size, size, 3) uint8. whole: size ->
    (h, w, 3) uint8, where the model sees the picture in another shape than a square. file: its file's bytes, where it
    has one of its own.
    """

    id: str
    group: str
    caption: str = ""
    concept: str = ""
    read: Callable[[int], np.ndarray] | None = field(default=None, repr=False, compare=False)
    whole: Callable[[int], np.ndarray] | None = field(default=None, repr=False, compare=False)
    file: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)

    def seen(self, size: int) -> np.ndarray:
        """The picture as a model of that resolution sees it: (h, w, 3) uint8, RGB, square in most sets.

        Raises:
            DataError: it cannot be read, or the item has no picture.
        """
        return self.image(size) if self.whole is None else self.whole(size)

    def image(self, size: int) -> np.ndarray:
        """The picture as (size, size, 3) uint8, RGB; of a set that keeps shapes, its middle.

        Raises:
            DataError: it cannot be read, or the item has no picture.
        """
        if self.read is None:
            raise DataError(f"The item '{self.id}' has no picture.")
        return self.read(size)


def described(group: str, concept: str) -> Item:
    """An item without a picture, to write a prompt about a concept as a group would draw it."""
    return Item(f"{group}/{concept}", group, concept=concept)


@dataclass(frozen=True, eq=False)
class Pictures(Sequence[Item]):
    """Pictures of one split in memory; as a sequence, its items.

    pixels: (N, H, H, 3) uint8; where they have several shapes, (N,) of such arrays (h, w, 3). groups, names: N ids and
    names, aligned with pixels; a name is unique in its group.
    concepts: what each shows; None: the names tell. captions: as written beside the pictures; None: nothing is.
    """

    pixels: np.ndarray
    groups: tuple[str, ...]
    names: tuple[str, ...]
    concepts: tuple[str, ...] | None = None
    captions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        given = (self.pixels, self.groups, self.names, self.concepts, self.captions)
        counts = [len(v) for v in given if v is not None]
        if len(set(counts)) != 1:
            raise DataError(f"Pixels, groups, names, concepts and captions must be equally many; got {counts}.")

    def __len__(self) -> int:
        return len(self.pixels)

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> Pictures: ...
    def __getitem__(self, at: int | slice) -> Item | Pictures:
        if isinstance(at, slice):
            return self.at(range(len(self))[at])
        group, name, pixels = self.groups[at], self.names[at], self.pixels[at]
        caption = self.captions[at] if self.captions is not None else ""
        concept = self.concepts[at] if self.concepts is not None else name
        square = pixels.shape[0] == pixels.shape[1]
        whole = None if square else (lambda size: fitted(pixels, size))
        return Item(f"{group}/{name}", group, caption, concept, lambda size: fitted(middle(pixels), size), whole)

    def at(self, places: Sequence[int]) -> Pictures:
        """The pictures at these places, in this order."""
        at = list(places)

        def some(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[i] for i in at)

        more = (None if v is None else some(v) for v in (self.concepts, self.captions))
        return Pictures(self.pixels[at], some(self.groups), some(self.names), *more)

    def where(self, keep: Callable[[str, str], bool]) -> Pictures:
        """The pictures for which keep(group, name) holds, in order."""
        return self.at([i for i, (g, n) in enumerate(zip(self.groups, self.names, strict=True)) if keep(g, n)])

    @property
    def file_bytes(self) -> int:
        """Bytes of the temporary file that holds the pixels (`in_memory`, of many pictures); 0: they are in memory."""
        held: Any = self.pixels[0] if len(self) and self.pixels.dtype == object else self.pixels
        while held is not None and not isinstance(held, mmap.mmap):
            held = getattr(held, "base", None)
        return len(held or b"")

    def sha256(self) -> str:
        """Hash of groups, names (as `normal` spells them) and pixels, in order; of captions too, if there are some."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        h = hashlib.sha256()
        for g, n, p in zip(self.groups, self.names, self.pixels, strict=True):
            h.update(f"{g}/{normal(n)}\n".encode())
            h.update(b"" if p.shape[0] == p.shape[1] else f"{p.shape}".encode())
            h.update(np.ascontiguousarray(p).tobytes())
        for caption in self.captions or ():
            h.update(f"{caption}\n".encode())
        return h.hexdigest()


class GroupDataset(ABC):
    """The training pictures of a group set.

    Items of a split come group by group, in the group set's order, and in the same order every time.
    """

    group_set: GroupSet

    @abstractmethod
    def split(self, name: str) -> Sequence[Item]:
        """The items of a split.

        name: "train" (trained on), "held_out" (never trained on by anything), or "pretrain" (everything but what is
        held out: what a VAE or a CLIP may see).

        Raises:
            DataError: there is no such split, or the pictures are not there.
        """

    def fingerprint(self, split: str = "train") -> str:
        """SHA-256 of a split: groups, names, captions and pictures, in order. What is made from it records this."""
        found = self.split(split)
        return (found if isinstance(found, Pictures) else in_memory(found, self.group_set.resolution)).sha256()


def in_memory(items: Sequence[Item], size: int, *, seen: bool = False) -> Pictures:
    """Items as arrays, each read at `size`; what is in memory at that size already is handed back as it is.

    seen: each as a model sees it, which is not square in every set.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    if isinstance(items, Pictures) and (not len(items) or items.pixels.shape[1:3] == (size, size)):
        return items
    if not len(items):
        raise DataError("There are no pictures in this split.")
    names = tuple(i.id.removeprefix(f"{i.group}/") for i in items)
    pixels = _room(len(items), size)
    if seen and any(i.whole is not None for i in items):
        pixels = _shapes(items, size, pixels.reshape(len(items), -1))
    else:
        for i, item in enumerate(items):
            pixels[i] = item.image(size)
    groups, concepts, captions = (tuple(getattr(i, k) for i in items) for k in ("group", "concept", "caption"))
    return Pictures(pixels, groups, names, concepts, captions if any(captions) else None)


def _shapes(items: Sequence[Item], size: int, room: np.ndarray) -> np.ndarray:
    """(N,) arrays (h, w, 3), read into the rows of `room`, (N, 3 size^2): no picture has more pixels than a square."""
    out = np.empty(len(items), object)
    for i, item in enumerate(items):
        pixels = item.seen(size)
        out[i] = room[i, : pixels.size].reshape(pixels.shape)
        out[i][:] = pixels
    return out


def _room(n: int, size: int) -> np.ndarray:
    """(n, size, size, 3) uint8, to be filled; above LARGE bytes, in a file without a name that the system can drop from
    memory, and that is gone with the array.

    Raises:
        DataError: there is no room on the disk.
    """
    shape = (n, size, size, 3)
    if math.prod(shape) <= LARGE:
        return np.empty(shape, np.uint8)
    try:
        with tempfile.TemporaryFile(prefix="guda-pixels-") as f:
            reserve(f.fileno(), math.prod(shape))
            return np.memmap(f, np.uint8, "w+", shape=shape)
    except OSError as e:
        gib = math.prod(shape) / 2**30
        raise DataError(
            f"{n:,} pictures at {size} px need {gib:.1f} GiB in {tempfile.gettempdir()} ({e.strerror or e}). "
            "Set TMPDIR to a folder with more room."
        ) from e


def batches(items: Sequence[Item], size: int, batch: int) -> Iterator[np.ndarray]:
    """The items' pictures in order, (up to batch, size, size, 3) uint8 at a time, so that few are in memory."""
    for i in range(0, len(items), batch):
        yield np.stack([item.image(size) for item in items[i : i + batch]])
