"""Pictures that a list beside the group set names (`data.own.picture_list`), as `guda groups new` writes it.

What is trained on and what is held out stands in the list, with the SHA-256 of each file: a file that was changed since
is an error, not another training. Pictures are opened when needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from guda_core.data.dataset import SPLITS, Item
from guda_core.data.images import OWN, Fit, read_file, read_picture
from guda_core.data.own.data_sets import file_of, open_data_set, undecoded
from guda_core.data.own.picture_list import FILE, Listed, read_list
from guda_core.data.sources.folder import SetOptions
from guda_core.data.sources.source import Source, readers
from guda_core.errors import DataError, GroupSetError, ImageError
from guda_core.paths import below, home, is_file, is_folder, pictures_of
from guda_core.records import GroupSet
from guda_core.strict import Text

AGAIN = "Write the list anew with `guda groups new --again`."


class RowOptions(SetOptions):
    """path: of the data set, or hub:user/name. image: the column of pictures. config: the data set's configuration."""

    image: Text = "image"
    config: Text | None = None


class ListedFiles(Source):
    """Files below a folder. Its options `held_out` and `seed` say how the held-out pictures were drawn when the list
    was written; they change nothing afterwards."""

    SetOptions = SetOptions

    def __init__(self, group_set: GroupSet) -> None:
        super().__init__(group_set)
        self.folder = group_set.folder or home()
        self.path = group_set.options["path"]

    @cached_property
    def pictures(self) -> list[Listed]:
        """The list, group by group, in the group set's order.

        Raises:
            GroupSetError: it cannot be read, or a picture is of a group that the set does not have.
        """
        found = read_list(self.folder / FILE)
        places = {gid: i for i, gid in enumerate(self.group_set.groups)}
        strange = sorted({p.group for p in found} - set(places))
        if strange:
            raise GroupSetError(
                f"{self.folder / FILE} names the group '{strange[0]}', which the group set lacks. {AGAIN}"
            )
        return sorted(found, key=lambda p: places[p.group])

    def missing(self) -> list[str]:
        """Listed pictures that are not there."""
        return [p.picture for p in self.pictures if not is_file(self._file(p.picture))]

    @property
    def _root(self) -> Path:
        return pictures_of(self.folder, self.path)

    def _file(self, picture: str) -> Path:
        """Where a listed picture is. Raises DataError for one outside the pictures' folder."""
        found = below(self._root, picture)
        if found is None:
            raise DataError(f"{self.folder / FILE}: '{picture}' lies outside {self._root}. {AGAIN}")
        return found

    def check_there(self) -> None:
        """Raises DataError when the whole folder is not there."""
        if not is_folder(self._root):
            raise DataError(
                f"The pictures of '{self.group_set.id}' should be in {self._root}, and there is no such folder. If it "
                "was moved, name its new place, or that of the table which lists the pictures: `guda groups new PLACE "
                f"--name {self.group_set.id} --again`."
            )

    def bytes_of(self, picture: str) -> bytes:
        """The bytes of a picture's file.

        Raises:
            DataError: it is not there any more, or lies outside the pictures' folder. ImageError: it cannot be read.
        """
        path = self._file(picture)
        if not is_file(path):
            self.check_there()
            raise DataError(f"The picture {picture} is not there any more. Put it back, or leave it out. {AGAIN}")
        return read_file(path, OWN)

    def _read(self, entry: Listed, fit: Fit, size: int) -> np.ndarray:
        try:
            data = self.bytes_of(entry.picture)
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise DataError(f"The picture {entry.picture} was changed after it was listed. {AGAIN}")
            return read_picture(data, size=size, fit=fit, limits=OWN).pixels
        except ImageError as e:
            raise DataError(f"{entry.picture}: {e} If it was moved or taken out: {AGAIN}") from e

    def _of(self, split: str) -> list[Listed]:
        if split not in SPLITS:
            raise DataError(f"There is no split '{split}'. Known: {', '.join(SPLITS)}.")
        return [p for p in self.pictures if p.held_out == (split == "held_out")]

    def split(self, name: str) -> list[Item]:
        return [
            Item(
                f"{p.group}/{p.picture}",
                p.group,
                p.text,
                p.object,
                *readers(self.group_set.fit, partial(self._read, p)),
                partial(self.bytes_of, p.picture),
            )
            for p in self._of(name)
        ]

    def fingerprint(self, split: str = "train", *, captions: bool = True) -> str:
        """Of the list: groups, names, the files' SHA-256 and, unless told not to, captions; and of how pictures are
        fitted."""
        h = hashlib.sha256(f"{self.group_set.fit}\n".encode())
        for p in self._of(split):
            said = f"{p.text}\0{p.object}\0" if captions else ""
            h.update(f"{p.group}/{p.picture}\0{said}{p.sha256}\n".encode())
        return h.hexdigest()


class ListedRows(ListedFiles):
    """Rows of a data set that the library `datasets` reads."""

    SetOptions = RowOptions

    @cached_property
    def _rows(self) -> Mapping[str, Any]:
        """Split -> rows with the undecoded pictures."""
        opened = open_data_set(self._place, self.group_set.options.get("config"))
        image = self.group_set.options["image"]
        for name, rows in opened.items():
            if image not in rows.features:
                raise DataError(f"The split '{name}' of {self.path} has no column '{image}'.")
        return {name: undecoded(rows, image) for name, rows in opened.items()}

    def check_there(self) -> None:
        """A data set that is not there says so when it is opened."""

    @property
    def _place(self) -> str:
        return self.path if self.path.startswith("hub:") else str(self._root)

    def missing(self) -> list[str]:
        most = {name: len(rows) for name, rows in self._rows.items()}
        places = [(p.picture, *p.picture.rpartition("/")[::2]) for p in self.pictures]
        return [whole for whole, split, row in places if not row.isdecimal() or int(row) >= most.get(split, 0)]

    def bytes_of(self, picture: str) -> bytes:
        split, _, row = picture.rpartition("/")
        rows = self._rows.get(split)
        if rows is None or not row.isdecimal() or int(row) >= len(rows):
            raise DataError(f"The data set {self.path} has no row {picture}. {AGAIN}")
        return file_of(self._place, rows[int(row)][self.group_set.options["image"]])
