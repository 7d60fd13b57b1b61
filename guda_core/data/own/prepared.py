"""A group set of the user's own pictures, from the place where they are to what is ready to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guda_core.data.own import data_sets, in_folder, set_files, tables
from guda_core.data.own.found import Found
from guda_core.data.own.new_set import Draft, NewSet, draft
from guda_core.errors import DataError, GroupSetError, OptionError
from guda_core.paths import at_home, is_file, is_folder, is_there


@dataclass(frozen=True)
class Prepared:
    """A group set before it is written. there: whether there is one of its id. differing: what would change in that
    one, in sentences; none when there is no other."""

    draft: Draft
    there: bool
    differing: list[str]

    @property
    def changes(self) -> bool:
        """Whether writing it changes anything."""
        return not self.there or bool(self.differing)

    def write(self, *, again: bool) -> Path:
        """Write it; gives its folder. again: also in place of another one of its id.

        Raises:
            GroupSetError: another one is there, and `again` was not said; or it contradicts itself.
            DataError: the files cannot be written.
        """
        if self.differing and not again:
            raise GroupSetError(
                f"The group set '{self.draft.id}' is there already, and nothing was written. To write it anew, add "
                "--again. Names, phrases, authors, licences and links that you wrote into it "
                "are kept."
            )
        return set_files.write(self.draft) if self.changes else set_files.folder_of(self.draft.id)


def prepare(
    place: str,
    given: Mapping[str, Any],
    rows: Mapping[str, str | None],
    *,
    folder: Path | None = None,
    tell: Callable[[int, float], None] = lambda pictures, done: None,
) -> Prepared:
    """Find the pictures, open each once, and compare with the set that is there.

    Args:
        place: a folder, a table or a data set, see `guda groups new`.
        given: the fields of `NewSet` that were asked for.
        rows: which of a data set's columns, splits and configurations.
        folder: of a table: where the files lie.
        tell: hears how many pictures there are and the share that is opened, 0 to 1.

    Raises:
        GudaError: the pictures cannot be found or read, there are fewer than two groups, or a wish is no good.
    """
    place = place if place.startswith("hub:") else str(at_home(place))
    asked = NewSet(**{"name": _named_after(place), **given})
    old = set_files.existing(asked.id)
    asked = set_files.as_before(asked, old, set(given))
    found = _find(place, folder, rows)
    made = draft(found, asked, lambda done: tell(len(found.candidates), done))
    if old is None:
        return Prepared(made, False, [])
    made = set_files.kept(made, old, phrases="phrase" not in given)
    return Prepared(made, True, set_files.differences(made, old))


def _find(place: str, folder: Path | None, rows: Mapping[str, str | None]) -> Found:
    """The pictures of a folder, a table or a data set."""
    path = at_home(place)
    asked = [name for name in rows if rows[name] is not None]
    if (asked or folder is not None) and not (place.startswith(data_sets.HUB) or is_there(path)):
        raise DataError(f"There is nothing at '{place}'. A data set of the Hub is written hub:USER/NAME.")
    is_table = path.suffix.lower() in tables.KINDS and not is_folder(path)
    columns = [name for name in asked if name.endswith("column")]
    of_rows = bool(columns and not is_table) or data_sets.is_data_set(place)
    if asked and not of_rows:
        own = " Call the columns of a table file_name, group and text." if columns else ""
        raise OptionError(f"{_option(asked[0])} is for a data set, and '{place}' is none.{own}")
    if folder is not None and not is_table:
        raise OptionError(f"{_option('folder')} is for a table, and '{place}' is none.")
    if of_rows:
        return data_sets.find_in_data_set(place, **rows)
    return in_folder.find_in_table(path, folder) if is_table else in_folder.find_in_folder(path)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _named_after(place: str) -> str:
    """A set's name by its place: the folder's, the file's without its ending, or the data set's."""
    if place.startswith("hub:"):
        return place.removeprefix("hub:").partition("@")[0].rpartition("/")[2] or "pictures"
    path = at_home(place).absolute()
    return (path.stem if is_file(path) else path.name) or "pictures"
