"""Which parts of a table are whole and its own: some may come, change or go while it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guda_core.errors import OptionError, ReportError
from guda_core.scoring import parts, places
from guda_core.scoring.table_run import TABLE, begun


class NothingYetError(OptionError):
    """Nothing of a table is finished yet."""


class OwnParts:
    """Of the folder of a table. good: the places of such parts. cut: how many others there are.

    made_from: gives what the table was made from, and raises ReportError where that is damaged.
    """

    def __init__(self, folder: str, connection: Any, made_from: Callable[[], dict[str, Any]]) -> None:
        self.folder, self._connection, self._made_from = folder, connection, made_from
        self.good: list[str] = []
        self.cut = 0
        self._seen: dict[str, str] | None = None
        self._known: set[tuple[str, str]] = set()  # (place, when it was written) of the good ones
        self._known_of: Any = None

    def look(self) -> bool:
        """Whether the parts are others than the last time. Good ones that are as they were are not read again; those
        that were left out are, because their disk or store may have failed in passing.

        Raises:
            OptionError: there is no table any more. NothingYetError: nothing of it is finished yet.
        """
        found = places.marks(places.joined(self.folder, parts.FOLDER), parts.ENDING)
        seen = {**places.marks(self.folder, ".json"), **found}
        if seen == self._seen and not self.cut:
            return False
        before, self._seen = (self.good if seen == self._seen else None), None
        self._find(found)
        if not self.good:
            raise NothingYetError(
                f"Nothing in '{self.folder}' is finished yet. Wait, or run the command that made it again."
            )
        self._seen = seen
        return self.good != before

    def forget(self) -> None:
        """Let the next look find something new."""
        self._seen = None

    def _find(self, found: dict[str, str]) -> None:
        if (table := begun(self.folder)) is None:
            raise OptionError(f"There are no results in '{self.folder}': it has no {TABLE}.")
        count = int(table["parts"])
        try:
            made = self._made_from()
        except ReportError:
            made = None  # what needs that file says so
        if (made, count) != self._known_of:
            self._known, self._known_of = set(), (made, count)
        whole, _ = parts.whole([p for p, mark in found.items() if (p, mark) not in self._known])
        own = set(whole if made is None else self._of_table(whole, made, count))
        known = self._known
        self._known = {at for at in found.items() if at in known or at[0] in own}
        self.good = [place for place, mark in found.items() if (place, mark) in self._known]
        self.cut = len(found) - len(self.good)

    def _of_table(self, whole: list[str], made: dict[str, Any], count: int) -> list[str]:
        """Those that are no other table's, in no other one's place, and not damaged."""
        origins = parts.origins(self._connection, whole)
        return [p for p in whole if origins.get(p, "") in (None, parts.origin(made, parts.number_of(p), count))]
