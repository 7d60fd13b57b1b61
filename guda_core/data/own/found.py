"""What was found of the user's pictures before any is opened, and how several things are said in one sentence."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guda_core.data.prompts import MAX_PROMPT
from guda_core.errors import DataError

HALF = re.compile("[\ud800-\udfff]")
NAMED = 3  # things that a sentence names; the others are counted
RIGHTS = ("author", "licence", "licence_link", "link")


@dataclass(frozen=True)
class Candidate:
    """A picture that may become one of the set's.

    picture: its place, a file below the folder or a row of a data set ("train/17"). group: the name of its group.
    read: gives the bytes of its file. text: its caption, "" for none. object: what it shows, "" where not known.
    """

    picture: str
    group: str
    read: Callable[[], bytes] = field(repr=False, compare=False)
    text: str = ""
    object: str = ""
    author: str = ""
    licence: str = ""
    licence_link: str = ""
    link: str = ""


@dataclass
class Found:
    """source: what the group set will say of where its pictures are. notes: what a person should know, in sentences.
    missing: pictures that cannot be opened at all, with the reason. away: those of them that a table names as files and
    that are not there. looked_at, looked_in: the place, and where a table's files were looked for, for sentences."""

    looked_at: str
    source: dict[str, Any]
    candidates: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    away: list[str] = field(default_factory=list)
    looked_in: str = ""


def some(things: Sequence[object], most: int = NAMED) -> str:
    """The first few, and how many more: "a, b, c and 9 more"."""
    more = f" and {len(things) - most:,} more" if len(things) > most else ""
    return ", ".join(str(t) for t in things[:most]) + more


def counted(n: int, one: str, many: str = "") -> str:
    """ "1 picture", "1,200 pictures"."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def too_long(captions: Mapping[str, str]) -> list[str]:
    """A sentence on captions that no prompt may be as long as, if there are any. captions: picture -> its caption."""
    long = [picture for picture, text in captions.items() if len(text) > MAX_PROMPT]
    many = counted(len(long), "caption has", "captions have")
    return [f"{many} more than the {MAX_PROMPT:,} characters that a prompt may have: {some(long)}."] if long else []


def words(value: object, what: str) -> str:
    """A cell as text, its white space reduced; "" for an empty one.

    Raises:
        DataError: it is neither text nor a number, or holds NUL or half (surrogate) characters.
    """
    if value is None or value != value:  # NaN, as pandas writes empty cells
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise DataError(f"{what} must be text, and is {type(value).__name__}.")
    if "\0" in str(value):
        raise DataError(f"{what} holds the character NUL (U+0000). Take it out.")
    if HALF.search(str(value)):
        raise DataError(f"{what} holds half a character (U+D800 to U+DFFF), which cannot be written. Type it in again.")
    return unicodedata.normalize("NFC", " ".join(str(value).split()))
