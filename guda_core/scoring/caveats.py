"""What has to be said beside a table's scores, such as that adapters are older than the pictures: `caveats.json` in
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


def write(folder: str, said: list[str]) -> None:
    """Write down what has to be said now, in place of what had to be before: it is of the models, not of when a picture
    was scored.

    Raises:
        ReportError: the file cannot be written.
    """
    if said != read(folder):
        places.write(places.joined(folder, CAVEATS), json.dumps(said, indent=1).encode())
