"""One visitor's answer as the page keeps it: frozen, so that two runs never share anything that changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guda_core.errors import ReportError
from guda_core.picture_records import Shown
from guda_core.records import Attribution, Query, Scope, Tried
from guda_core.reports import bundle
from guda_core.reports.record import to_json
from guda_core.service import Service
from guda_core.ui import words


@dataclass(frozen=True)
class Answer:
    """Everything that is known of one picture. found: method -> its latest answer, not final while it is worked on.

    methods: as asked, in the order of display. scope: None until it was looked at. untried: why not every other
    caption was tried. shown: strip and maps. file: the upload, None for a picture that was drawn here; it may be swept.
    """

    query: Query
    methods: tuple[str, ...]
    effort: str
    found: Mapping[str, Attribution] = field(default_factory=dict)
    scope: Scope | None = None
    tried: Sequence[Tried] = ()
    untried: str = ""
    shown: Shown = field(default_factory=Shown)
    file: Path | None = None

    def scored(self) -> list[Attribution]:
        """The answers that hold at least one group, in the order of display."""
        return [self.found[m] for m in self.methods if m in self.found and self.found[m].groups]

    def _parts(self, service: Service) -> dict[str, Any]:
        settings = {"methods": list(self.methods), "effort": self.effort}
        scope = None if self.scope is None else self.scope.plain()
        return {"provenance": service.provenance(), "settings": settings, "scope": scope, "tried": self.tried}

    def record(self, service: Service) -> dict[str, Any]:
        """The record as JSON. Raises ReportError when nothing was scored."""
        return to_json(self.query, self._finished(), service.group_set, **self._parts(service))

    def report(self, service: Service, *, with_file: bool = False) -> bytes:
        """The report's zip. with_file: put the uploaded file in as it is; of a drawn picture there is none.

        Raises:
            ReportError: nothing was scored, a value is not finite, or the uploaded file is not there any more.
        """
        parts = self._parts(service)
        original = self._original() if with_file and self.query.file_hash is not None else None
        return bundle.make(
            self.query, self._finished(), service.group_set, **parts, shown=self.shown, original=original
        )

    def _original(self) -> bytes:
        try:
            data = self.file.read_bytes() if self.file is not None else b""
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != self.query.file_hash:
            raise ReportError(words.FILE_GONE)
        return data

    def _finished(self) -> list[Attribution]:
        if not self.scored():
            raise ReportError(words.NO_ANSWER)
        return self.scored()
