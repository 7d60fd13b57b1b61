"""Pictures on this machine: one subfolder a group, and beside a picture, if you like, its caption in a .txt.

    path/ann-lee/cat.png    path/ann-lee/cat.txt ("a cat on a wall")    path/bo-chan/sea.jpg

The subfolder has the group's id, or the name that the group's `source` tells. Pictures are opened when needed. A share
of every group is held out: the pictures whose names have the smallest hashes, so that the choice depends on nothing but
the seed and the names, and hardly moves when pictures are added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from guda_core.data.dataset import SPLITS, Item
from guda_core.data.images import OWN, Fit, read_file, read_picture
from guda_core.data.sources.source import Source, readers
from guda_core.errors import DataError, GroupSetError, ImageError
from guda_core.paths import home, is_folder, pictures_of
from guda_core.records import Group, GroupSet
from guda_core.strict import Fields, Text

KINDS = (".png", ".jpg", ".jpeg", ".webp")


class SetOptions(Fields):
    """path: of the folder; a relative one is looked for beside the group set. held_out: share of each group, 0 to 0.9;
    of a group with two pictures or more at least one. seed: which ones."""

    path: Text
    held_out: float = 0.1
    seed: int = 0


class GroupOptions(Fields):
    """folder: name of the group's subfolder; default: the group's id."""

    folder: Text | None = None


def read_own(path: Path, fit: Fit, size: int) -> np.ndarray:
    """A training picture as (size, size, 3) uint8, made square as uploads are; by "bucket" in its own shape.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_picture(read_file(path, OWN), size=size, fit=fit, limits=OWN).pixels
    except ImageError as e:
        raise DataError(f"{path}: {e}") from e


def _caption(path: Path) -> str:
    """The text beside a picture, its white space reduced; "" where there is none."""
    try:
        return " ".join(path.with_suffix(".txt").read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path.with_suffix('.txt')} is not readable as UTF-8 text. Save it again as UTF-8.") from e


class Folder(Source):
    """The pictures below a folder."""

    SetOptions = SetOptions
    GroupOptions = GroupOptions

    def __init__(self, group_set: GroupSet) -> None:
        super().__init__(group_set)
        self.options = SetOptions(**group_set.options)

    @property
    def root(self) -> Path:
        """Raises OptionError: see `paths.pictures_of`."""
        return pictures_of(self.group_set.folder or home(), self.options.path)

    @classmethod
    def check(cls, group_set: GroupSet) -> None:
        share = group_set.options.get("held_out", 0.0)
        if not 0 <= share <= 0.9:
            raise GroupSetError(f"group set '{group_set.id}': source: 'held_out' must be between 0 and 0.9.")

    def _paths(self, group: Group) -> list[Path]:
        """The group's pictures, by name."""
        root, name = self.root, group.source.get("folder", group.id)
        folder = pictures_of(root, name)
        if not is_folder(folder):
            raise DataError(f"The pictures of '{group.id}' should be in {folder}, and there is no such folder.")
        found = [p for p in folder.iterdir() if p.suffix.lower() in KINDS and not p.name.startswith(".")]
        found.sort(key=lambda p: p.name)  # the same on every system: Windows' own order knows no upper case
        if not found:
            raise DataError(f"{folder} has no pictures. It needs files that end in {', '.join(KINDS)}.")
        return found

    def _held_out(self, group: Group, paths: list[Path]) -> set[str]:
        def drawn(name: str) -> str:
            return hashlib.sha256(f"{self.options.seed}/{group.id}/{name}".encode()).hexdigest()

        share = self.options.held_out
        n = min(max(1, round(share * len(paths))), len(paths) - 1) if share and len(paths) > 1 else 0
        return set(sorted((p.name for p in paths), key=drawn)[:n])

    def _files(self, split: str) -> Iterator[tuple[Group, Path]]:
        if split not in SPLITS:
            raise DataError(f"There is no split '{split}'. Known: {', '.join(SPLITS)}.")
        for group in self.group_set.groups.values():
            paths = self._paths(group)
            held = self._held_out(group, paths)
            yield from ((group, p) for p in paths if (p.name in held) == (split == "held_out"))

    def split(self, name: str) -> list[Item]:
        fit = self.group_set.fit
        return [
            Item(
                f"{g.id}/{p.name}",
                g.id,
                _caption(p),
                "",
                *readers(fit, partial(read_own, p)),
                partial(read_file, p, OWN),
            )
            for g, p in self._files(name)
        ]

    def fingerprint(self, split: str = "train") -> str:
        fit = self.group_set.fit
        h = hashlib.sha256(b"" if fit == "pad" else f"{fit}\n".encode())
        for g, p in self._files(split):
            h.update(f"{g.id}/{p.name}\0{_caption(p)}\n".encode())
            h.update(hashlib.sha256(p.read_bytes()).digest())
        return h.hexdigest()
