"""Strict reader of `style_groups/<set>/group_set.yaml`: the groups, their descriptors, authors, licences, sources."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import yaml

from guda_core.errors import GroupSetError
from guda_core.paths import STYLE_GROUPS
from guda_core.records import Group, GroupSet

GROUP_FIELDS = ("name", "author", "licence", "licence_link", "link", "package", "version", "descriptors")
SET_FIELDS = (
    "id",
    "name",
    "resolution",
    "caption",
    "descriptors_per_caption",
    "source",
    "groups",
    "objects",
)
SOURCES = ("npm-iconify",)
GROUP_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # becomes the name of files
SHAPES = {  # fields that are handed to a browser or to npm: what they must look like
    "link": (re.compile(r"https://\S+"), "an https:// address"),
    "licence_link": (re.compile(r"https://\S+"), "an https:// address"),
    "package": (re.compile(r"(@[a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*"), "the name of an npm package"),
    "version": (re.compile(r"\d+\.\d+\.\d+([-+][\w.+-]+)?"), "one exact version, such as 1.2.5"),
}


def normal(name: str) -> str:
    """The name with everything but a-z and 0-9 dropped: how pictures of different sets are matched."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def list_group_sets(root: Path = STYLE_GROUPS) -> list[str]:
    """Ids of the group sets that have a folder with a `group_set.yaml`."""
    return sorted(p.parent.name for p in root.glob("*/group_set.yaml"))


class _Reader(yaml.SafeLoader):
    """YAML in which a key that stands twice in a mapping is an error; plain YAML drops the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice[0]}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Reader)
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise GroupSetError(f"{path} is not readable as YAML: {e}") from e


def _exact(what: str, mapping: Any, fields: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(mapping, dict):
        raise GroupSetError(f"{what} must be a mapping with the fields {', '.join(fields)}.")
    for missing in [f for f in fields if f not in mapping]:
        raise GroupSetError(f"{what} has no field '{missing}'. Add it; all of {', '.join(fields)} are needed.")
    for extra in [f for f in mapping if f not in fields]:
        raise GroupSetError(f"{what} has a field '{extra}' that means nothing here. Known: {', '.join(fields)}.")
    return mapping


def _words(what: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise GroupSetError(f"{what} must be a list of words.")
    words = tuple(v.strip() for v in value)
    keys = [normal(w) or w for w in words]
    twice = sorted({w for w, k in zip(words, keys, strict=True) if keys.count(k) > 1})
    if twice:
        raise GroupSetError(f"{what} names {', '.join(twice)} twice.")
    return words


def _holds(text: str, name: str) -> bool:
    """Whether the text holds the name, however it is written (names without a-z and 0-9 are compared as they are)."""
    return name.casefold() in text.casefold() or (normal(name) != "" and normal(name) in normal(text))


def _caption(what: str, value: Any) -> str:
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
    except (TypeError, ValueError):
        fields = []
    if sorted(fields) != ["descriptors", "object"]:
        raise GroupSetError(
            f"{what}: caption must hold {{object}} and {{descriptors}}, once each, with no other braces."
        )
    return value


def _group(gid: str, entry: Any) -> Group:
    what = f"group '{gid}'"
    if not GROUP_ID.fullmatch(gid):
        raise GroupSetError(f"{what}: an id is made of a-z, 0-9 and single dashes, because files are named after it.")
    fields = _exact(what, entry, GROUP_FIELDS)
    texts = {}
    for f in GROUP_FIELDS[:-1]:
        if not isinstance(fields[f], str) or not fields[f].strip():
            raise GroupSetError(f"{what}: '{f}' must be a non-empty text (quote numbers).")
        texts[f] = fields[f].strip()
    for f, (shape, meaning) in SHAPES.items():
        if not shape.fullmatch(texts[f]):
            raise GroupSetError(f"{what}: '{f}' must be {meaning}, and is '{texts[f]}'.")
    descriptors = _words(f"{what}: 'descriptors'", fields["descriptors"])
    if len(descriptors) < 5:
        raise GroupSetError(f"{what} has {len(descriptors)} descriptors; at least 5 are needed.")
    for d in descriptors:
        if _holds(d, gid) or _holds(d, texts["name"]):
            raise GroupSetError(f"{what}: descriptor '{d}' holds the group's name; captions must not.")
    return Group(id=gid, descriptors=descriptors, **texts)


def _check_distinct(groups: dict[str, Group], k: int) -> None:
    """k descriptors must single one group out: no two groups may share k or more."""
    ids = list(groups)
    for i, a in enumerate(ids):
        for b in ids[i + 1 :]:
            shared = set(groups[a].descriptors) & set(groups[b].descriptors)
            if len(shared) >= k:
                raise GroupSetError(f"groups '{a}' and '{b}' share {len(shared)} descriptors; fewer than {k} allowed.")


def load_group_set(name: str = "emoji", root: Path = STYLE_GROUPS) -> GroupSet:
    """Read and check one group set.

    Raises:
        GroupSetError: the file is missing, is not YAML, has missing or unknown fields, or contradicts itself.
    """
    path = root / name / "group_set.yaml"
    if not path.is_file():
        raise GroupSetError(f"There is no group set '{name}' (no {path}). Known: {', '.join(list_group_sets(root))}.")
    top = _exact(f"group set '{name}'", _read(path), SET_FIELDS)
    if top["id"] != name:
        raise GroupSetError(f"group set '{name}' calls itself '{top['id']}'; the folder's name and the id must agree.")
    if top["source"] not in SOURCES:
        raise GroupSetError(f"group set '{name}': source '{top['source']}' is unknown. Known: {', '.join(SOURCES)}.")
    if type(top["resolution"]) is not int or top["resolution"] < 8:
        raise GroupSetError(f"group set '{name}': resolution must be a whole number of pixels, at least 8.")
    if not isinstance(top["name"], str) or not top["name"].strip():
        raise GroupSetError(f"group set '{name}': 'name' must be a non-empty text.")
    caption = _caption(f"group set '{name}'", top["caption"])
    if not isinstance(top["groups"], dict) or len(top["groups"]) < 2:
        raise GroupSetError(f"group set '{name}': at least two groups are needed.")
    groups = {str(gid): _group(str(gid), entry) for gid, entry in top["groups"].items()}
    k = top["descriptors_per_caption"]
    if type(k) is not int or not 1 <= k <= min(len(g.descriptors) for g in groups.values()):
        raise GroupSetError(f"group set '{name}': descriptors_per_caption must be between 1 and the shortest list.")
    _check_distinct(groups, k)
    objects = _exact(f"group set '{name}': objects", top["objects"], ("train", "held_out"))
    train = _words(f"group set '{name}': objects.train", objects["train"])
    held_out = _words(f"group set '{name}': objects.held_out", objects["held_out"])
    for o in (*train, *held_out):
        if "- " in o or " -" in o:
            raise GroupSetError(f"group set '{name}': the object '{o}' was cut at a dash by a line break; join it.")
    both = {normal(o) for o in train} & {normal(o) for o in held_out}
    if both:
        raise GroupSetError(f"group set '{name}': {', '.join(sorted(both))} are both trained on and held out.")
    return GroupSet(name, top["name"].strip(), top["resolution"], caption, k, groups, train, held_out)
