"""Training pictures, whatever they come from: an item, a set of them with groups and splits, and its array form.

A `GroupDataset` answers three questions: which groups there are, which items a split holds, and what hash stands for
them. Everything that learns from pictures (unlearning, features, trainings) asks it and nothing else.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import overload

import numpy as np
from PIL import Image

from guda_core.data.groups import normal
from guda_core.errors import DataError
from guda_core.records import GroupSet

SPLITS = ("train", "held_out", "pretrain")
LARGE = 2**30  # bytes of pixels above which they lie on the disk


def fitted(pixels: np.ndarray, size: int) -> np.ndarray:
    """Square (H, H, 3) uint8 as (size, size, 3), by Lanczos; the same array where it has that size already."""
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Item:
    """One training picture, not yet opened; or, without `read`, only what a prompt is about.

    id: unique in its set, "<group>/<name>". group: id of its group. caption: as written beside the picture, "" where
    nothing is. concept: what it shows, "" where that is not known. read: size -> (size, size, 3) uint8.
    """

    id: str
    group: str
    caption: str = ""
    concept: str = ""
    read: Callable[[int], np.ndarray] | None = field(default=None, repr=False, compare=False)

    def image(self, size: int) -> np.ndarray:
        """The picture as (size, size, 3) uint8, RGB.

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

    pixels: (N, H, H, 3) uint8. groups, names: N ids and names, aligned with pixels; a name is unique in its group.
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
        return Item(f"{group}/{name}", group, caption, concept, lambda size: fitted(pixels, size))

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

    def sha256(self) -> str:
        """Hash of groups, names (as `normal` spells them) and pixels, in order; of captions too, if there are some."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        h = hashlib.sha256()
        for g, n, p in zip(self.groups, self.names, self.pixels, strict=True):
            h.update(f"{g}/{normal(n)}\n".encode())
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

    @abstractmethod
    def fingerprint(self, split: str = "train") -> str:
        """SHA-256 of a split: groups, names, captions and pictures, in order. What is made from it records this."""


@dataclass(frozen=True)
class InMemory(GroupDataset):
    """A dataset of given pictures, split by split: `InMemory(group_set, {"train": pictures})`."""

    group_set: GroupSet
    splits: dict[str, Pictures]

    def split(self, name: str) -> Pictures:
        if name not in self.splits:
            raise DataError(f"There is no split '{name}'. Known: {', '.join(self.splits)}.")
        return self.splits[name]

    def fingerprint(self, split: str = "train") -> str:
        return self.split(split).sha256()


def in_memory(items: Sequence[Item], size: int) -> Pictures:
    """Items as arrays, each read at `size`; what is in memory at that size already is handed back as it is.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    if isinstance(items, Pictures) and (not len(items) or items.pixels.shape[1:3] == (size, size)):
        return items
    if not len(items):
        raise DataError("There are no pictures in this split.")
    names = tuple(i.id.removeprefix(f"{i.group}/") for i in items)
    pixels = _room(len(items), size)
    for i, item in enumerate(items):
        pixels[i] = item.image(size)
    groups, concepts, captions = (tuple(getattr(i, k) for i in items) for k in ("group", "concept", "caption"))
    return Pictures(pixels, groups, names, concepts, captions if any(captions) else None)


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
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(f.fileno(), 0, math.prod(shape))  # or a full disk would end the process later
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
