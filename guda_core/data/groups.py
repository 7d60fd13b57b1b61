"""Strict reader of `style_groups/<set>/group_set.yaml`: the groups, how their style is said, where pictures come from.

A set needs an id, a name, a source and two groups; a group needs an id and a name. All else has a default. What only
one source needs of a set or of a group stands under `source`, and that source checks it:

    id: artists
    name: Six artists
    source: {id: folder, path: pictures}
    caption: "{content}, {phrase}"
    groups:
      ann-lee: {name: Ann Lee, phrase: by Ann Lee}
      bo-chan: {name: Bo Chan, phrase: by Bo Chan}
"""

from __future__ import annotations

import os
import re
import string
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from guda_core.data import SOURCES
from guda_core.errors import GroupSetError
from guda_core.file_names import ID, ID_SAID
from guda_core.paths import Folder, is_file, only_set, sets
from guda_core.records import NOT_STATED, Group, GroupSet
from guda_core.strict import Fields, Text, checked, read_yaml

INCLUDED = "emoji"  # id of the set that is asked about where none is named
GROUP_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # becomes the name of files
HTTPS = re.compile(r"https://\S+")  # what is handed to a browser
TEMPLATES = {("descriptors", "object"), ("content", "phrase")}
FEWEST_DESCRIPTORS = 5
BETWEEN, AROUND = re.compile(r"[\s_-]+"), ".,;:!?'\"()"  # of words: what tells no two phrases apart
MOVED = ("package", "version")  # of a group, in files of version 0.1


def normal(name: str) -> str:
    """The name with everything but a-z and 0-9 dropped: how pictures of different sets are matched."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def list_group_sets(root: Folder | None = None) -> list[str]:
    """Ids of the group sets that have a folder with a `group_set.yaml`."""
    where = sets() if root is None else root
    return sorted(p.parent.name for p in where.glob("*/group_set.yaml"))


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError("must be a list of words")
    words = tuple(v.strip() for v in value)
    keys = [normal(w) or w for w in words]
    twice = sorted({w for w, k in zip(words, keys, strict=True) if keys.count(k) > 1})
    if twice:
        raise ValueError(f"names {', '.join(twice)} twice")
    return words


def _https(value: str) -> str:
    if not HTTPS.fullmatch(value):
        raise ValueError(f"must be an https:// address, and is '{value}'")
    return value


def _template(value: Any) -> str:
    try:
        found = string.Formatter().parse(value)
        parts = [(name, spec, conversion) for _, name, spec, conversion in found if name is not None]
    except (TypeError, ValueError):
        parts = []
    if tuple(sorted(name for name, _, _ in parts)) not in TEMPLATES:
        raise ValueError(
            "must hold {object} and {descriptors}, or {content} and {phrase}, once each, with no other braces"
        )
    if any(spec or conversion for _, spec, conversion in parts):  # a width would fill the memory
        raise ValueError("must hold names alone in its braces, such as {object}, with no ':' or '!' after them")
    return value


def _whole(least: int, of: str = "") -> BeforeValidator:
    def check(value: Any) -> int:
        if type(value) is not int or value < least:
            raise ValueError(f"must be a whole number{of}, at least {least}")
        return value

    return BeforeValidator(check)


def _fit(value: Any) -> str:
    if value not in ("pad", "crop", "bucket"):
        raise ValueError("must be pad (put on a white square), crop (keep the middle) or bucket (keep the shape)")
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Link = Annotated[Text, AfterValidator(_https)]


class GroupFields(Fields):
    """A group's entry; see `Group`. Author, licence and links may also be said once for all groups, in the set."""

    name: Text
    author: Text = NOT_STATED
    licence: Text = NOT_STATED
    licence_link: Link = ""
    link: Link = ""
    descriptors: Words = ()
    phrase: Text = ""
    source: Any = None


class Objects(Fields):
    """Names of what is drawn: trained on, and held out."""

    train: Words
    held_out: Words


class SetFields(Fields):
    """The entry of a whole set; see `GroupSet`."""

    id: Text
    name: Text
    source: Any
    groups: Any
    resolution: Annotated[int, _whole(8, " of pixels")] = 512
    fit: Annotated[Literal["pad", "crop", "bucket"], BeforeValidator(_fit)] = "pad"
    caption: Annotated[str, BeforeValidator(_template)] = ""
    descriptors_per_caption: Annotated[int, _whole(1)] = 3
    objects: Any = None
    author: Text = NOT_STATED
    licence: Text = NOT_STATED
    licence_link: Link = ""
    link: Link = ""


FOR_ALL = ("author", "licence", "licence_link", "link")


def _holds(text: str, name: str) -> bool:
    """Whether the text holds the name, however it is written (names without a-z and 0-9 are compared as they are)."""
    return name.casefold() in text.casefold() or (normal(name) != "" and normal(name) in normal(text))


def _source(what: str, entry: Any) -> tuple[str, dict[str, Any]]:
    """(id, what else the source is told of the set) of `source: ID` or `source: {id: ID, ...}`."""
    options = dict(entry) if isinstance(entry, dict) else {"id": entry}
    sid = options.pop("id", None)
    if not isinstance(sid, str) or sid not in SOURCES:
        raise GroupSetError(f"{what}: source '{sid}' is unknown. Known: {', '.join(SOURCES)}.")
    return sid, options


def _group(gid: str, entry: Any, common: Mapping[str, Any], source: Any) -> Group:
    what = f"group '{gid}'"
    if not GROUP_ID.fullmatch(gid):
        raise GroupSetError(f"{what}: an id is made of a-z, 0-9 and single dashes, because files are named after it.")
    for field in MOVED:
        if isinstance(entry, dict) and field in entry:
            raise GroupSetError(f"{what} has a field '{field}', which stands under `source` since version 0.2.")
    own = checked(GroupFields, {**common, **entry} if isinstance(entry, dict) else entry, what, GroupSetError)
    options = checked(source.GroupOptions, own.source or {}, f"{what}: source", GroupSetError)
    for d in own.descriptors:
        if _holds(d, gid) or _holds(d, own.name):
            raise GroupSetError(f"{what}: descriptor '{d}' holds the group's name; captions must not.")
    return Group(gid, **{**own.model_dump(), "source": options.model_dump(exclude_none=True)})


def _check_descriptors(what: str, groups: dict[str, Group], k: int) -> None:
    """k descriptors must single one group out: no two groups may share k or more."""
    for gid, g in groups.items():
        if len(g.descriptors) < FEWEST_DESCRIPTORS:
            raise GroupSetError(
                f"group '{gid}' has {len(g.descriptors)} descriptors; at least {FEWEST_DESCRIPTORS} are needed."
            )
    if k > min(len(g.descriptors) for g in groups.values()):
        raise GroupSetError(f"{what}: 'descriptors_per_caption' must be between 1 and the length of the shortest list.")
    ids = list(groups)
    for i, a in enumerate(ids):
        for b in ids[i + 1 :]:
            shared = set(groups[a].descriptors) & set(groups[b].descriptors)
            if len(shared) >= k:
                raise GroupSetError(f"groups '{a}' and '{b}' share {len(shared)} descriptors; fewer than {k} allowed.")


def _check_phrases(groups: dict[str, Group]) -> None:
    """Every group has a phrase of its own."""
    seen: dict[str, str] = {}
    for gid, g in groups.items():
        if not g.phrase:
            raise GroupSetError(f"group '{gid}' has no field 'phrase'. Add it, for example \"in the {g.name} style\".")
        words = BETWEEN.split(unicodedata.normalize("NFC", g.phrase).casefold())
        other = seen.setdefault("".join(w.strip(AROUND) or w for w in words), gid)
        if other != gid:
            raise GroupSetError(
                f"groups '{other}' and '{gid}' have the same phrase; captions could not tell them apart."
            )


def _check_captions(what: str, caption: str, groups: dict[str, Group], k: int) -> None:
    """The template says what the groups have, and nothing else."""
    fields = ("descriptors",) if "{descriptors}" in caption else ("phrase",) if caption else ()
    for field, example in (("descriptors", "{object} with {descriptors}"), ("phrase", "{content}, {phrase}")):
        having = [gid for gid, g in groups.items() if getattr(g, field)]
        if having and field not in fields:
            if not caption:
                raise GroupSetError(f"{what} has no field 'caption', but its groups have a {field}. Add \"{example}\".")
            raise GroupSetError(
                f"group '{having[0]}' has a field '{field}' that the caption \"{caption}\" does not use."
            )
    if fields == ("descriptors",):
        _check_descriptors(what, groups, k)
    elif fields:
        _check_phrases(groups)


def _objects(what: str, entry: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if entry is None:
        return (), ()
    objects = checked(Objects, entry, f"{what}: objects", GroupSetError)
    for o in (*objects.train, *objects.held_out):
        if "- " in o or " -" in o:
            raise GroupSetError(f"{what}: the object '{o}' was cut at a dash by a line break; join it.")
    both = {normal(o) for o in objects.train} & {normal(o) for o in objects.held_out}
    if both:
        raise GroupSetError(f"{what}: {', '.join(sorted(both))} are both trained on and held out.")
    return objects.train, objects.held_out


def chosen_set(given: str | None, of_card: str = "") -> str:
    """The name of the group set to use: the one that is given, else GUDA_GROUP_SET, else the model card's, else the
    workspace's own where it holds just one.

    of_card: "" where the card names none.

    Raises:
        GroupSetError: none of them says it.
    """
    found = given or os.environ.get("GUDA_GROUP_SET") or of_card or only_set()
    if not found:
        raise GroupSetError(
            f"The model's card names no group set. Name one with --set (or GUDA_GROUP_SET); known are "
            f"{', '.join(list_group_sets())}. Make your own with `guda groups new`."
        )
    return found


def load_group_set(name: str = INCLUDED, root: Folder | None = None) -> GroupSet:
    """Read and check one group set. root: the folder of sets; default: those of the workspaces.

    Raises:
        GroupSetError: there is no such set, or its file is not YAML, has missing or unknown fields, or contradicts
            itself.
    """
    where = sets() if root is None else root
    path = where / name / "group_set.yaml" if ID.fullmatch(name) else None  # another name may lead anywhere
    if path is None or not is_file(path):
        why = ID_SAID if path is None else f"no {path}"
        raise GroupSetError(
            f"There is no group set '{name[:120]}' ({why}). Known: {', '.join(list_group_sets(root))}. Make one with "
            "`guda groups new FOLDER` (in Python: guda_core.make_groups)."
        )
    what = f"group set '{name}'"
    top = checked(SetFields, read_yaml(path, GroupSetError), what, GroupSetError)
    if top.id != name:
        raise GroupSetError(f"{what} calls itself '{top.id}'; the folder's name and the id must agree.")
    sid, options = _source(what, top.source)
    source = SOURCES.find(sid)
    told = checked(source.SetOptions, options, f"{what}: source", GroupSetError)
    if not isinstance(top.groups, dict) or len(top.groups) < 2:
        raise GroupSetError(f"{what}: at least two groups are needed.")
    common = {k: v for k in FOR_ALL if (v := getattr(top, k)) != SetFields.model_fields[k].default}
    groups = {str(gid): _group(str(gid), entry, common, source) for gid, entry in top.groups.items()}
    _check_captions(what, top.caption, groups, top.descriptors_per_caption)
    train, held_out = _objects(what, top.objects)
    found = GroupSet(
        name, top.name, groups, source=sid, options=told.model_dump(exclude_none=True), resolution=top.resolution,
        fit=top.fit, caption=top.caption, descriptors_per_caption=top.descriptors_per_caption, train_objects=train,
        held_out_objects=held_out, folder=path.parent,
    )  # fmt: skip
    source.check(found)
    return found
