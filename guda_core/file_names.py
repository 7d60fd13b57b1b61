"""Names that a file or folder may have on every system: short, and none that Windows keeps for a device."""

from __future__ import annotations

import hashlib

MOST = 60  # characters of an id that files are named after
DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))])


def fitting(name: str) -> str:
    """The id as it is. One that is too long, or a device's name, ends in six digits of its own SHA-256."""
    if len(name) <= MOST and name not in DEVICES:
        return name
    digits = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{name[: MOST - 7].strip('-')}-{digits}"
