"""Ids from names: a-z, 0-9 and single dashes, because files are named after them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from guda_core.errors import GroupSetError
from guda_core.file_names import MOST, is_devices

LETTERS = str.maketrans({"ø": "o", "æ": "ae", "œ": "oe", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "ß": "ss"})


def slug(name: str) -> str:
    """The id of a name: "José Núñez" becomes "jose-nunez".

    Where letters of another script would be lost, or nothing is left, six digits of the name's SHA-256 are added, so
    that the id stays that of this name: "group-6c0b4f". So are they to a name that Windows keeps for a device: "con".
    """
    whole = unicodedata.normalize("NFKD", name.casefold()).translate(LETTERS)
    plain = "".join(c for c in whole if not unicodedata.combining(c))
    found = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:MOST].strip("-")
    if found and not is_devices(found) and all(c.isascii() for c in plain if c.isalnum()):
        return found
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{found or 'group'}-{digest[:6]}"


def slugs(names: Iterable[str]) -> dict[str, str]:
    """name -> id.

    Raises:
        GroupSetError: two names have the same id; both are named.
    """
    out: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(slug(name), name)
        if other != name:
            raise GroupSetError(f"'{other}' and '{name}' would both have the id '{slug(name)}'. Rename one of them.")
        out[name] = slug(name)
    return out
