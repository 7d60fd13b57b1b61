"""What has to be said beside a table's scores, such as that adapters were older than the pictures: `caveats.json` in
its folder. No score depends on it, so it is no part of what the table is made from.
"""

from __future__ import annotations

import json

from guda_core.scoring import places

CAVEATS = "caveats.json"


def read(folder: str) -> list[str]:
    """The sentences; none where there is no file, or it is damaged."""
    try:
        found = json.loads(places.read(places.joined(folder, CAVEATS)))
    except (OSError, ValueError, RecursionError):
        return []
    return [s for s in found if isinstance(s, str)] if isinstance(found, list) else []


def add(folder: str, said: str) -> None:
    """Write a sentence down beside those of before; "" says nothing.

    Raises:
        ReportError: the file cannot be written.
    """
    before = read(folder)
    if said and said not in before:
        places.write(places.joined(folder, CAVEATS), json.dumps([*before, said], indent=1).encode())
