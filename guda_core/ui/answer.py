"""One visitor's answer as the page keeps it: frozen, so that two runs never share anything that changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from guda_core.errors import ReportError
from guda_core.picture_records import Shown
from guda_core.records import Attribution, Query, Scope
from guda_core.reports import bundle
from guda_core.reports.record import to_json
from guda_core.service import Service
from guda_core.ui import words


@dataclass(frozen=True)
class Tried:
    """One caption and what the main method answers with it. label: what kind of caption it is."""

    label: str
    caption: str
    answer: Attribution


@dataclass(frozen=True)
class Answer:
    """Everything that is known of one picture. found: method -> its latest answer, not final while it is worked on.

    methods: as asked, in the order of display. scope: None until it was looked at. shown: strip and maps.
    """

    query: Query
    methods: tuple[str, ...]
    effort: str
    found: Mapping[str, Attribution] = field(default_factory=dict)
    scope: Scope | None = None
    tried: Sequence[Tried] = ()
    shown: Shown = field(default_factory=Shown)

    def scored(self) -> list[Attribution]:
        """The answers that hold at least one group, in the order of display."""
        return [self.found[m] for m in self.methods if m in self.found and self.found[m].groups]

    def _parts(self, service: Service) -> dict[str, Any]:
        settings = {"methods": list(self.methods), "effort": self.effort}
        scope = asdict(self.scope) if self.scope is not None and self.scope.verdict != "not assessed" else None
        return {"provenance": service.provenance(), "settings": settings, "scope": scope}

    def record(self, service: Service) -> dict[str, Any]:
        """The record as JSON. Raises ReportError when nothing was scored."""
        return to_json(self.query, self._finished(), service.group_set, **self._parts(service))

    def report(self, service: Service) -> bytes:
        """The report's zip. Raises ReportError when nothing was scored, or a value is not finite."""
        parts = self._parts(service)
        return bundle.make(self.query, self._finished(), service.group_set, **parts, shown=self.shown)

    def _finished(self) -> list[Attribution]:
        if not self.scored():
            raise ReportError(words.NO_ANSWER)
        return self.scored()
