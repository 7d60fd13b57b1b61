"""The list of a set's pictures, `pictures.jsonl` beside its `group_set.yaml`: a JSON object for each picture.

    {"picture": "Ann Lee/cat.jpg", "group": "ann-lee", "sha256": "...", "held_out": true, "text": "a cat on a wall"}

It is written once, so that what is trained on and what is held out stays as it is until the list is written anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from guda_core.data.own.found import counted, some
from guda_core.errors import GroupSetError
from guda_core.held_files import replacing
from guda_core.strict import Fields, Text

FILE = "pictures.jsonl"


class Listed(Fields):
    """One picture.

    picture: its place: a file below the set's path, or a row of its data set ("train/17"). group: its group's id.
    sha256: of the file's bytes. held_out: never trained on. text: its caption. object: what it shows.
    captioned_by: the network that wrote the caption, "" where a person did.
    """

    picture: Text
    group: Text
    sha256: Text
    held_out: bool = False
    text: str = ""
    object: str = ""
    captioned_by: str = ""
    author: str = ""
    licence: str = ""
    licence_link: str = ""
    link: str = ""


def write_list(path: Path, pictures: Iterable[Listed]) -> None:
    """Write the list; a file of that name is replaced in one go."""
    rows = (json.dumps(p.model_dump(exclude_defaults=True), ensure_ascii=False) for p in pictures)
    with replacing(path) as new:
        new.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def read_list(path: Path) -> list[Listed]:
    """The pictures of a list.

    Raises:
        GroupSetError: the file is missing, is no UTF-8, or a line of it is not a picture.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise GroupSetError(f"The list {path} cannot be read. Write it anew with `guda groups new --again`.") from e
    out = []
    for n, line in enumerate(lines, 1):
        if line.strip():
            try:
                out.append(Listed.model_validate_json(line))
            except ValidationError as e:
                place = ".".join(str(p) for p in e.errors()[0]["loc"])
                at = f" at '{place}'" if place else ""
                raise GroupSetError(f"{path}, line {n} is wrong{at}.") from e
    return out


def trained_on(folder: Path | None) -> str | None:
    """What the set in a folder is trained on, by its list: a SHA-256 of the pictures' hashes, groups and captions (of
    one without: of what it shows), in any order. None where there is no list, or none that can be read."""
    try:
        found = read_list(folder / FILE) if folder is not None and (folder / FILE).is_file() else None
    except GroupSetError:
        return None
    if found is None:
        return None
    own = [
        [p.group, p.sha256, p.text, *([p.object] if p.object and not p.text else [])] for p in found if not p.held_out
    ]
    rows = sorted(map(json.dumps, own))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def changes(before: Sequence[Listed], now: Sequence[Listed]) -> list[str]:
    """What differs between two lists, in sentences; [] where nothing does."""
    old, new = {p.picture: p for p in before}, {p.picture: p for p in now}
    was = _names_before([p for p in before if p.picture not in new], [p for p in now if p.picture not in old])
    renamed = [(was[k], new[k]) for k in new if k in was]
    other = {p.picture for pair in renamed for p in pair}
    both = [*((old[k], new[k]) for k in new if k in old), *renamed]
    kinds = {
        "new": [k for k in new if k not in old and k not in other],
        "gone": [k for k in old if k not in new and k not in other],
        "renamed": [f"{b.picture} (was {a.picture})" for a, b in renamed],
        "changed in their pixels": [b.picture for a, b in both if a.sha256 != b.sha256],
        "in another group": [b.picture for a, b in both if a.group != b.group],
        "with another caption": [b.picture for a, b in both if (a.text, a.object) != (b.text, b.object)],
        "with other rights": [b.picture for a, b in both if _rights(a) != _rights(b)],
        "held out now": [b.picture for a, b in both if b.held_out and not a.held_out],
        "trained on now": [b.picture for a, b in both if a.held_out and not b.held_out],
    }
    return [f"{counted(len(v), 'picture')} {kind}: {some(v)}." for kind, v in kinds.items() if v]


def _names_before(gone: Sequence[Listed], come: Sequence[Listed]) -> dict[str, Listed]:
    """Place of a picture that has come -> the one that is gone and has the same bytes: of its own group, where there is
    one, since a picture may be in two."""
    was, taken = dict[str, Listed](), set[str]()
    for same in (lambda p: (p.group, p.sha256), lambda p: p.sha256):
        left = defaultdict[object, list[Listed]](list)
        for p in reversed(gone):
            if p.picture not in taken:
                left[same(p)].append(p)
        for p in come:
            if p.picture not in was and left[same(p)]:
                was[p.picture] = left[same(p)].pop()
                taken.add(was[p.picture].picture)
    return was


def _rights(p: Listed) -> tuple[str, ...]:
    return p.author, p.licence, p.licence_link, p.link
