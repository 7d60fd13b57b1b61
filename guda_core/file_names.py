"""Names that a file or folder may have on every system: short, and none that Windows keeps for a device. And sentences
that name a file without saying where on this machine it lies, which is private."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

MOST = 60  # characters of an id that files are named after
ID = re.compile(
    r"""(?![ .])[^/\\:*?"<>|\x00-\x1f\x7f]+(?<![ .])"""
)  # of a model or a set: a folder's name, no way to another
ID_SAID = """An id is a folder's name: without / \\ : * ? " < > |, and with no dot or space at its beginning or end"""
DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))])


DEVICE_SAID = "Windows keeps the name '{0}' for a device. There, the id '{0}' does not work: choose another."


def is_devices(name: str) -> bool:
    """Whether Windows takes the name for a device: in any case, and whatever follows the first dot."""
    return name.partition(".")[0].rstrip(" ").lower() in DEVICES


def fitting(name: str) -> str:
    """The id as it is. One that is too long, or a device's name, ends in six digits of its own SHA-256; a device's has
    dashes for its dots."""
    if len(name) <= MOST and not is_devices(name):
        return name
    digits = hashlib.sha256(name.encode()).hexdigest()[:6]
    name = name.replace(".", "-") if is_devices(name) else name
    return f"{name[: MOST - 7].strip('-')}-{digits}"


ROOT = r"(?:~|[A-Za-z]:)?[/\\]"  # a path begins with: /, \\, ~/ or C:\
QUOTED = re.compile(rf"""(?P<quote>['"`]){ROOT}[^'"`]*[/\\](?P<name>[^'"`/\\]+)[/\\]?(?P=quote)""")
BARE = re.compile(rf"""(?<![\w./\\:~-]){ROOT}(?:[^\s'"`]*[/\\])?(?P<name>[^\s'"`/\\]+)""")


def placeless(text: str, *folders: Path) -> str:
    """A sentence in which every path from a disk's or a home's root is only its last name, for others' eyes.

    folders: paths that the sentence may hold with spaces in them. A path relative to where the user stands is left.
    """
    for folder in (f for f in folders if f.is_absolute()):
        text = text.replace(str(folder), folder.name)
    return BARE.sub(r"\g<name>", QUOTED.sub(r"\g<quote>\g<name>\g<quote>", text))
