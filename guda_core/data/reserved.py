"""Held-out pictures that are kept for a benchmark: nothing that is tried on them may be made from them.

`queries.json` of a benchmark names its pictures; those of its set "real" are held-out pictures of the group set.
"""

from __future__ import annotations

import json
from pathlib import Path

from guda_core.errors import DataError
from guda_core.records import GroupSet


def reserved(queries: Path, group_set: GroupSet) -> set[tuple[str, str]]:
    """(group, object) of the held-out pictures of the group set that are queries; none where there is no such file.

    Raises:
        DataError: the file is damaged.
    """
    if not queries.is_file():
        return set()
    try:
        record = json.loads(queries.read_text(encoding="utf-8"))
        items = record["items"] if record.get("group_set") == group_set.id else []
        return {(i["groups"][0], i["object"]) for i in items if i["set"] == "real"}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as e:
        raise DataError(
            f"{queries} is damaged ({e}). It names the queries of a benchmark: bring it back, or remove it to draw "
            "others."
        ) from e
