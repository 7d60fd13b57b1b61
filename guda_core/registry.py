"""Open lists of members: attribution methods, forget losses, picture sources, model families.

A member is a line `id: "module:attribute"`, imported when it is first asked for, so that a list costs nothing. An
installed package adds members by entry points of the registry's group (its pyproject.toml); a program by `add`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import reduce
from importlib import import_module
from importlib.metadata import entry_points
from threading import RLock
from typing import Any, ClassVar

from guda_core.errors import OptionError

log = logging.getLogger(__name__)


class Registry(Mapping[str, Any]):
    """id -> member, in the order of registration; members of other packages come last.

    kind: what a member is, for messages, e.g. "method". group: of the entry points, e.g. "guda_core.methods".
    members: id -> "module:attribute". own: their ids, without those of other packages. added: ids that this program
    added, which another process need not know.
    """

    changes: ClassVar[int] = 0  # of all lists, by `add` and `remove`

    def __init__(self, kind: str, group: str, members: Mapping[str, str]) -> None:
        self.kind, self.group = kind, group
        self._members: dict[str, Any] = dict(members)
        self.own = frozenset(members)
        self.added = set[str]()
        self._named: dict[str, set[str]] = {}  # id -> all lines that are known to name its member
        self._outside = False  # whether other packages' members have been looked up
        self._lock = RLock()

    def _all(self) -> dict[str, Any]:
        if not self._outside:
            with self._lock:
                if not self._outside:
                    self._look_outside()
                    self._outside = True
        return self._members

    def _look_outside(self) -> None:
        for point in entry_points(group=self.group):
            line = f"{point.module}:{point.attr}"  # without the spaces and extras that may stand in its value
            if (kept := _line(self._members.setdefault(point.name, line))) != line:
                log.warning("The %s '%s' is %s; %s is left out.", self.kind, point.name, kept, line)

    def add(self, id: str, member: Any) -> None:
        """Add a member, or a line "module:attribute" that names one. Adding the same one again is nothing.

        Raises:
            OptionError: the id is taken, the member calls itself by another, or it is no class, function or line.
        """
        if not (":" in member if isinstance(member, str) else callable(member)):
            said = repr(member) if isinstance(member, str) else type(member).__name__
            raise OptionError(f'A {self.kind} is a class, or a line "module:attribute" that names one; got {said}.')
        if isinstance(named := getattr(member, "id", id), str) and named != id:
            raise OptionError(f"This {self.kind} calls itself '{named}', so it cannot be added as '{id}'.")
        if id in self._all() and not self._is_same(id, member):
            raise OptionError(f"There is a {self.kind} '{id}' already. Choose another id.")
        if id not in self._members or not isinstance(member, str):
            Registry.changes += self._members.get(id) is not member
            if id not in self._members:
                self.added.add(id)
            self._members[id] = member

    def _is_same(self, id: str, member: Any) -> bool:
        """Whether it is the member of that id, by its line or, where that is another one, by what the lines lead to."""
        if _line(member) in {_line(self._members[id]), *self._named.get(id, ())}:
            return True
        line = _line(self._members[id])
        try:
            return self[id] is (self._imported(id, member) if isinstance(member, str) else member)
        except OptionError:  # or the line's package is just being imported, and this is what adds its member
            return _is_of(member, line)

    def remove(self, id: str) -> None:
        """Take a member out again, for example one that a test added."""
        self._members.pop(id)
        self._named.pop(id, None)
        self.added.discard(id)
        Registry.changes += 1

    def __getitem__(self, id: str) -> Any:
        member = self._all()[id]
        if isinstance(member, str):
            self._named.setdefault(id, set()).add(member)
            member = self._members[id] = self._imported(id, member)
        return member

    def _imported(self, id: str, line: str) -> Any:
        """The member behind a line. Raises OptionError where another package's cannot be imported."""
        module, _, attribute = line.partition(":")
        package = module.partition(".")[0]
        try:
            return reduce(getattr, attribute.split("."), import_module(module))
        except (Exception, SystemExit) as e:  # whatever stands in another package
            if package == __name__.partition(".")[0]:
                raise
            why = f"{type(e).__name__}: {e}"
            raise OptionError(
                f"The {self.kind} '{id}' cannot be imported ({why}). It is of the package '{package}'."
            ) from e

    def find(self, id: str) -> Any:
        """The member of that id.

        Raises:
            OptionError: there is none, and the message lists the known ones; or it is of another package and cannot be
                imported.
        """
        if id not in self._all():
            raise OptionError(f"There is no {self.kind} '{id}'. Known: {', '.join(self)}.")
        return self[id]

    def __contains__(self, id: object) -> bool:
        return id in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._all()))

    def __len__(self) -> int:
        return len(self._all())


def _is_of(member: Any, line: str) -> bool:
    """Whether a member has the name and the package of a line."""
    module, _, attribute = line.partition(":")
    packages = {m.partition(".")[0] for m in (module, getattr(member, "__module__", ""))}
    return len(packages) == 1 and getattr(member, "__name__", None) == attribute.rpartition(".")[2]


def _line(member: Any) -> str:
    """What names a member: "module:attribute"."""
    if isinstance(member, str):
        return member
    return f"{getattr(member, '__module__', '')}:{getattr(member, '__qualname__', repr(member))}"
