"""Writing a group set into the workspace, and what differs from the one that is there.

What a person wrote into a set of before is kept: names, phrases, authors, licences, links, the caption's template. An
author, licence or link that only came from the pictures' table or metadata is what these say now, where they say it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from guda_core.data.groups import load_group_set
from guda_core.data.own.found import RIGHTS
from guda_core.data.own.new_set import PHRASES, Draft, NewSet, rights_of
from guda_core.data.own.picture_list import FILE, Listed, changes, read_list, write_list
from guda_core.errors import DataError, GroupSetError
from guda_core.held_files import check_writable, replace_file
from guda_core.paths import STYLE_GROUPS, is_file, sets
from guda_core.records import NOT_STATED, GroupSet

SET, BEFORE = "group_set.yaml", "group_set.before.yaml"
KEPT = ("name", "phrase", "descriptors", *RIGHTS)
HEAD = """\
# Written by `guda groups new`. Write authors, licences and links (https://) where they are known; they are shown.
# A phrase is how a caption says its group. The pictures are listed in {list}.
"""


def folder_of(set_id: str) -> Path:
    """Where a set of the user's is written.

    Raises:
        GroupSetError: an included set has that name.
    """
    folder = sets().own(set_id)
    if (STYLE_GROUPS / set_id).is_dir():
        raise GroupSetError(f"'{set_id}' is the name of an included group set. Choose another: --name.")
    return folder


def existing(set_id: str) -> GroupSet | None:
    """The user's set of that id, None where there is none. Raises GroupSetError when it cannot be read."""
    folder = folder_of(set_id)
    return load_group_set(set_id, folder.parent) if is_file(folder / SET) else None


def as_before(asked: NewSet, old: GroupSet | None, given: set[str]) -> NewSet:
    """The wish with what was asked for at the last time, but for what is given now. A set that is named by its id keeps
    its name."""
    if old is None:
        return asked
    given = given - {"name"} if asked.name == old.id else given
    of_old: dict[str, Any] = {"fit": old.fit, "resolution": old.resolution, "name": old.name}
    of_old |= {k: v for k, v in old.options.items() if k in ("held_out", "seed")}
    if phrase := _one_phrase(old):
        of_old["phrase"] = phrase  # of new groups; the others keep theirs
    return replace(asked, set_id=old.id, **{k: v for k, v in of_old.items() if k not in given})


def _one_phrase(old: GroupSet) -> str | None:
    """How the set says most of its groups, with {name} in it; None where it has no such way."""
    ways = Counter(_way(g.name, g.phrase) for g in old.groups.values())
    way, n = ways.most_common(1)[0]
    return way if "{name}" in way and 2 * n > len(old.groups) else None


def _way(name: str, phrase: str) -> str:
    """A group's phrase with {name} where its name stands."""
    known = [way for way in PHRASES if way.replace("{name}", name) == phrase]
    return known[0] if known else re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "{name}", phrase, count=1)


def kept(new: Draft, old: GroupSet, *, phrases: bool) -> Draft:
    """The draft with what the old set says of groups that are in both, and with captions that a network made of
    pictures that are in both and have no other. phrases: those of the old set go before."""
    groups, notes = {}, list(new.notes)
    listed = _listed_before(new.id)
    if listed is None:
        listed = []
        notes.append(
            f"The list {folder_of(new.id) / FILE} could not be read: captions that a network wrote into it are not "
            f"kept, and authors, licences and links stay as {SET} says, also those that came from the pictures."
        )
    for gid, entry in new.entry["groups"].items():
        told = {k: v for k in KEPT if (v := getattr(old.groups.get(gid), k, None)) and v != NOT_STATED}
        own, came = [p for p in new.pictures if p.group == gid], [p for p in listed if p.group == gid]
        from_pictures = rights_of(gid, came, [])
        for what in [k for k in RIGHTS if k in told and any(getattr(p, k) for p in own)]:
            if told[what] == from_pictures.get(what):  # no person wrote it
                del told[what]
            elif (now := entry.get(what, "")) not in (told[what], from_pictures.get(what, "")):
                notes.append(
                    f"'{what}' of '{gid}' stays '{told[what]}', as {SET} says. The pictures' table or metadata says "
                    f"'{now}' now."
                )
        if not phrases:
            told.pop("phrase", None)
        told = {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}
        groups[gid] = {**entry, **told}
    entry = {**new.entry, "groups": groups}
    if old.caption and (phrases or ("caption" in entry and "{phrase}" in old.caption)):
        entry |= {"caption": old.caption, "descriptors_per_caption": old.descriptors_per_caption}
        if "{descriptors}" in old.caption:
            for group in groups.values():
                group.pop("phrase", None)
    elif phrases:
        entry.pop("caption", None)
        for group in groups.values():
            group.pop("phrase", None)
    return replace(new, entry=entry, pictures=_captioned_before(new, listed), notes=notes)


def _listed_before(set_id: str) -> list[Listed] | None:
    """The list that is there; None where it cannot be read."""
    try:
        return read_list(folder_of(set_id) / FILE)
    except GroupSetError:
        return None


def _captioned_before(new: Draft, listed: list[Listed]) -> list[Listed]:
    made = {p.sha256: p for p in listed if p.captioned_by}
    return [
        p.model_copy(update={"text": made[p.sha256].text, "captioned_by": made[p.sha256].captioned_by})
        if p.sha256 in made and not (p.text or p.object)
        else p
        for p in new.pictures
    ]


def differences(new: Draft, old: GroupSet) -> list[str]:
    """What would change, in sentences."""
    groups = new.entry["groups"]
    out = [f"The group '{g}' is new{_said(groups[g])}." for g in groups if g not in old.groups]
    out += [f"The group '{g}' is gone." for g in old.groups if g not in new.entry["groups"]]
    folder = folder_of(new.id)
    before = _listed_before(new.id)
    source = new.entry["source"]
    for what, was, now in (
        ("name", old.name, new.entry["name"]),
        ("fit", old.fit, new.entry["fit"]),
        ("resolution", old.resolution, new.entry["resolution"]),
        ("caption", old.caption, new.entry.get("caption", "")),
        *((k, old.options.get(k, source[k]), source[k]) for k in ("held_out", "seed")),
    ):
        out += [f"'{what}' was {was} and is {now}."] if was != now else []
    was, now = old.options.get("path"), _stored(new, folder)["path"]
    out += [f"The pictures were in {was} and are in {now}."] if was != now else []
    for gid, entry in new.entry["groups"].items():
        was, now = getattr(old.groups.get(gid), "phrase", None), entry.get("phrase", "")
        out += [f"The phrase of '{gid}' was '{was}' and is '{now}'."] if was is not None and was != now else []
        for what in RIGHTS if gid in old.groups else ():
            was, now = getattr(old.groups[gid], what) or NOT_STATED, entry.get(what) or NOT_STATED
            out += [f"'{what}' of '{gid}' was '{was}' and is '{now}'."] if was != now else []
    return out + (["The list of pictures is written anew."] if before is None else changes(before, new.pictures))


def _said(entry: dict[str, Any]) -> str:
    """How captions say a group."""
    return f'; captions say it "{entry["phrase"]}"' if entry.get("phrase") else ""


def _stored(new: Draft, folder: Path) -> dict[str, Any]:
    """The source's entry; a path below the set's own folder is relative, so that the workspace can move."""
    source, whole = dict(new.entry["source"]), Path(new.entry["source"]["path"])
    if whole.is_absolute() and whole.is_relative_to(folder.resolve()):
        source["path"] = whole.relative_to(folder.resolve()).as_posix()
    return source


def write(new: Draft) -> Path:
    """Write the set's two files, which are read back first; gives its folder. The file that was there is kept beside.

    Raises:
        GroupSetError: the set contradicts itself. DataError: the files cannot be written.
    """
    folder = folder_of(new.id)
    entry = {**new.entry, "source": _stored(new, folder)}
    text = yaml.safe_dump(entry, allow_unicode=True, sort_keys=False, width=110)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder.parent)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent, ignore_cleanup_errors=True) as made:
            there = Path(made) / new.id
            there.mkdir()
            (there / SET).write_text(HEAD.format(list=FILE) + text, encoding="utf-8")
            write_list(there / FILE, new.pictures)
            load_group_set(new.id, there.parent)
            if (folder / SET).is_file():
                shutil.copyfile(folder / SET, folder / BEFORE)
            replace_file(there / FILE, folder / FILE)
            replace_file(there / SET, folder / SET)
    except OSError as e:
        raise DataError(f"The group set cannot be written to {folder}: {e.strerror or e}.") from e
    return folder
