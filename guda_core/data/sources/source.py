"""What a picture source is, and the pictures of a group set by the source that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

import numpy as np

from guda_core.data import SOURCES
from guda_core.data.dataset import GroupDataset, Pictures, in_memory
from guda_core.data.images import Fit
from guda_core.errors import DataError
from guda_core.records import GroupSet
from guda_core.strict import Fields

Reader = Callable[[int], np.ndarray]


class NoOptions(Fields):
    """Nothing needs to be told."""


def readers(fit: Fit, read: Callable[[Fit, int], np.ndarray]) -> tuple[Reader, Reader | None]:
    """What an item of a picture file reads by, `Item.read` and `Item.whole`. read: (fit, size) -> pixels."""
    if fit == "bucket":
        return partial(read, "crop"), partial(read, "bucket")
    return partial(read, fit), None


class Source(GroupDataset):
    """A dataset of the pictures that a group set names. Making one opens no picture and asks no network.

    SetOptions, GroupOptions: what a set's and each group's `source` must tell; the reader of group sets checks it.
    """

    SetOptions: ClassVar[type[Fields]] = NoOptions
    GroupOptions: ClassVar[type[Fields]] = NoOptions

    def __init__(self, group_set: GroupSet) -> None:
        self.group_set = group_set

    @classmethod
    def check(cls, group_set: GroupSet) -> None:
        """Raises GroupSetError when the set lacks something else that this source needs."""

    def plan(self) -> list[str]:
        """What `fetch` would bring onto this machine, one line each; [] when there is nothing to fetch."""
        return []

    def fetch(self, *, yes: bool = False) -> Iterator[tuple[float, str]]:
        """Bring the pictures onto this machine; yields (fraction done, what is being done).

        yes: the user has seen `plan` and agrees to it.

        Raises:
            DataError: it failed, or the plan needs a yes.
        """
        yield 1.0, "nothing to fetch"


def open_dataset(group_set: GroupSet) -> Source:
    """The dataset of a group set.

    Raises:
        DataError: the set names no source.
    """
    if group_set.source not in SOURCES:
        raise DataError(
            f"The group set '{group_set.id}' does not say where its pictures come from. Known: {', '.join(SOURCES)}."
        )
    return SOURCES[group_set.source](group_set)


def load_pictures(group_set: GroupSet, split: str, size: int | None = None, *, seen: int | None = None) -> Pictures:
    """A split of a group set in memory, at `size`; None: as its source has it in memory, else the set's resolution.

    seen: a model's resolution; pictures that are files are read as it sees them, which is not square in every set.

    Raises:
        DataError: the pictures are not there, are damaged, or the split is unknown.
    """
    items = open_dataset(group_set).split(split)
    if isinstance(items, Pictures) and size is None:
        return items
    return in_memory(items, size or seen or group_set.resolution, seen=seen is not None)
