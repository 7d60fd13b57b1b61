"""Of a published group set: its groups are told, its pictures are not there. What needs them says so."""

from __future__ import annotations

from typing import NoReturn

from guda_core.data.sources.source import Source
from guda_core.errors import DataError


class NotPublished(Source):
    """No pictures."""

    def split(self, name: str) -> NoReturn:
        raise DataError(
            f"The training pictures of '{self.group_set.id}' were not published with it. This needs the workspace in "
            "which the adapters were made."
        )
