"""A group set from pictures that were found: opened once, checked, shared out, and said in the set's own fields.

    held out of a group with n pictures: max(1, round(share n)), for n >= 2; those with the smallest SHA-256 of
    seed/group/picture, so that the choice depends on nothing else and hardly moves when pictures are added.

A picture that stands twice in a group is taken once. One that stands in two groups is taken in both and held out in
neither, because what is held out must be trained on by nothing.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, get_args

from guda_core.data.groups import HTTPS
from guda_core.data.images import Fit, hash_picture
from guda_core.data.own.found import RIGHTS, Candidate, Found, counted, some, too_long
from guda_core.data.own.picture_list import Listed
from guda_core.data.own.slugs import slug, slugs
from guda_core.errors import DataError, ImageError, OptionError
from guda_core.records import NOT_STATED

PHRASES = ("by {name}", "in the style of {name}", "in the {name} style", "{name} style", "{name}")
TEMPLATE = "{content}, {phrase}"
MOST_BROKEN = 0.5  # share of pictures up to which a message offers to leave them out
ROUNDING = 1e-9  # 0.29 * 100 is 28.999...


@dataclass(frozen=True)
class NewSet:
    """What is asked for.

    name: shown to people; its slug is the id. held_out: share of each group, 0 to 0.9. seed: which ones. phrase: how
    captions say a group, with {name} in it; "" for a model that reads no prompts; None: as most captions say it
    already, else "by {name}". fit: how pictures become square, or that they keep their shape (`data.images`).
    resolution: their side in pixels. broken: the largest share of pictures that may be left out because they cannot be
    read. set_id: of the set that is there already, whose name may have been changed by hand; "": the name's slug.
    """

    name: str
    held_out: float = 0.1
    seed: int = 0
    phrase: str | None = None
    fit: Fit = "crop"
    resolution: int = 512
    broken: float = 0.01
    set_id: str = ""

    def __post_init__(self) -> None:
        for what, share, most in (("held out", self.held_out, 0.9), ("broken", self.broken, 1)):
            if not (isinstance(share, Real) and 0 <= share <= most):
                option = "--" + what.replace(" ", "-")
                raise OptionError(f"The share that is {what} ({option}) is between 0 and {most}; got {share!r}.")
        if not isinstance(self.phrase, str | None):
            raise OptionError(f"The phrase (--phrase) is a text; got {type(self.phrase).__name__}.")
        if self.phrase and "{name}" not in self.phrase:
            raise OptionError('The phrase (--phrase) needs {name} in it, for example "by {name}".')
        if not isinstance(self.name, str) or not self.name.strip():
            raise OptionError("The name of the set (--name) is empty, or no text.")
        if self.fit not in get_args(Fit):
            raise OptionError(f"The fit (--fit) is one of {', '.join(get_args(Fit))}; got {self.fit!r}.")
        if not isinstance(self.resolution, int) or not 8 <= self.resolution <= 2**20:
            raise OptionError(
                f"The resolution (--resolution) is a number of pixels, 8 or more; got {self.resolution!r:.60}."
            )
        if type(self.seed) is not int:
            raise OptionError("The seed (--seed) is a whole number.")

    @property
    def id(self) -> str:
        return self.set_id or slug(self.name)


@dataclass(frozen=True)
class Counts:
    """Pictures of a group. captions: so many of both kinds have one."""

    trained: int
    held_out: int
    captions: int

    @classmethod
    def of(cls, pictures: Sequence[Listed]) -> Counts:
        held = sum(p.held_out for p in pictures)
        return cls(len(pictures) - held, held, sum(bool(p.text) for p in pictures))


@dataclass(frozen=True)
class Draft:
    """A group set that is not yet written. entry: what its `group_set.yaml` holds. notes: sentences for a person."""

    entry: dict[str, Any]
    pictures: list[Listed]
    notes: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.entry["id"]

    def counts(self) -> dict[str, Counts]:
        """Group id -> how many pictures it has."""
        found = {gid: [p for p in self.pictures if p.group == gid] for gid in self.entry["groups"]}
        return {gid: Counts.of(own) for gid, own in found.items()}


@dataclass(frozen=True)
class _Opened:
    """A picture that could be read. content: hash of what it shows; sha256: of its file."""

    of: Candidate
    content: str
    sha256: str


def draft(found: Found, asked: NewSet, tell: Callable[[float], None] = lambda done: None) -> Draft:
    """Open every picture once and make the set. tell: hears the share that is done.

    Raises:
        DataError: too many pictures cannot be read, or fewer than two groups are left.
        GroupSetError: two groups would have the same id.
    """
    notes = list(found.notes)
    ids = slugs(dict.fromkeys(c.group for c in found.candidates))
    opened = _without_copies(_opened(found, asked.broken, notes, tell), notes)
    lost = [n for n in ids if n not in {o.of.group for o in opened}]
    if lost:
        notes.append(f"No picture of these groups can be read, so they are left out: {some(lost)}.")
    left = [n for n in ids if n not in lost]
    if len(left) < 2:
        one = f" ('{left[0]}')" if left else ""
        below = list(dict.fromkeys(c.object for c in found.candidates if c.group in left and c.object))
        deeper = f" If its subfolders are the groups ({some(below)}), name that folder." if len(below) > 1 else ""
        raise DataError(
            f"There is {counted(len(left), 'group')} with pictures in {found.looked_at}{one}, and at least two are "
            "needed: a group is compared with the others. Put each group's pictures into a subfolder of its own."
            + deeper
        )
    notes += too_long({o.of.picture: o.of.text for o in opened})
    shared = _shared(opened, notes)
    phrase = asked.phrase if asked.phrase is not None else likely_phrase(found.candidates)
    groups, pictures = {}, []
    for name in sorted(left, key=lambda n: ids[n]):
        own = [o for o in opened if o.of.group == name]
        held = _held_out(own, ids[name], asked, shared)
        if not held and len(own) > 1 and asked.held_out:
            notes.append(f"Nothing of '{name}' is held out, because all its pictures stand in other groups too.")
        pictures += [_listed(o, ids[name], o.of.picture in held) for o in own]
        said = {"phrase": phrase.replace("{name}", name)} if phrase else {}
        groups[ids[name]] = {"name": name, **said, **rights_of(name, [o.of for o in own], notes)}
    source = {**found.source, "held_out": asked.held_out, "seed": asked.seed}
    entry = {"id": asked.id, "name": asked.name.strip(), "source": source, "resolution": asked.resolution}
    entry |= {"fit": asked.fit, **({"caption": TEMPLATE} if phrase else {}), "groups": groups}
    return Draft(entry, pictures, notes)


def likely_phrase(candidates: Sequence[Candidate]) -> str:
    """How most of the captions say their group already, else "by {name}"."""
    told = [(c.text.casefold(), c.group.casefold()) for c in candidates if c.text]
    counts = [sum(_says(text, p.replace("{name}", name)) for text, name in told) for p in PHRASES]
    enough = max(0.5 * len(told), 0.8 * max(counts))
    return next((p for p, n in zip(PHRASES, counts, strict=True) if n and n >= enough), PHRASES[0])


def _says(text: str, phrase: str) -> bool:
    """Whether a text holds a phrase as whole words, as `PhraseCaptions` looks for it."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def _opened(found: Found, share: float, notes: list[str], tell: Callable[[float], None]) -> list[_Opened]:
    out, bad = [], list(found.missing)
    for i, c in enumerate(found.candidates):
        try:
            data = c.read()
            out.append(_Opened(c, hash_picture(data), hashlib.sha256(data).hexdigest()))
        except (ImageError, DataError) as e:
            bad.append(f"{c.picture} ({str(e).split('. ')[0].rstrip('.')})")
        tell((i + 1) / len(found.candidates))
    n = len(out) + len(bad)
    if not n:
        raise DataError(f"There are no pictures in {found.looked_at}.")
    if len(bad) > share * n + ROUNDING or len(found.away) == n:
        raise DataError(_refused(found, bad, n, share))
    if bad:
        notes.append(f"{len(bad):,} of {counted(n, 'picture')} cannot be read and were left out: {some(bad, 10)}.")
    return out


def _refused(found: Found, bad: list[str], n: int, share: float) -> str:
    """Why so many of n pictures cannot be left out; where most files of a table are not there, where they were looked
    for."""
    if 2 * len(found.away) > n:
        return (
            f"Not there: {len(found.away):,} of {counted(n, 'file')} that {found.looked_at} names, the first of them "
            f"{found.away[0]}. Looked for {found.looked_in}. Name the folder where they lie: --folder."
        )
    least = math.ceil(100 * len(bad) / n - ROUNDING) / 100
    offered = f" To leave that many out, add --broken {least:.2f}." if least <= MOST_BROKEN else ""
    return (
        f"{len(bad):,} of {counted(n, 'picture')} cannot be read, more than {share * 100:g}%: {some(bad)}. Mend them "
        f"or take them out.{offered}"
    )


def _without_copies(opened: list[_Opened], notes: list[str]) -> list[_Opened]:
    """Of pictures that show the same, one in each group: the first with a caption, else the first. What is not known of
    it is taken from the others."""
    kept: dict[tuple[str, str], _Opened] = {}
    copies = []
    for o in sorted(opened, key=lambda o: not o.of.text):
        one = kept.setdefault((o.of.group, o.content), o)
        if one is not o:
            copies.append(f"{o.of.picture} = {one.of.picture}")
            kept[o.of.group, o.content] = replace(one, of=_filled(one.of, o.of))
    if copies:
        notes.append(
            f"{counted(len(copies), 'copy', 'copies')} of pictures in the same group left out: {some(copies)}."
        )
    by_place = {o.of.picture: o for o in kept.values()}
    return [by_place[o.of.picture] for o in opened if o.of.picture in by_place]


def _filled(one: Candidate, copy: Candidate) -> Candidate:
    """A picture with what is known of a copy alone. The link of a licence goes with the licence."""
    lacks = {k for k in ("object", *RIGHTS) if not getattr(one, k)}
    if "licence" not in lacks and one.licence != copy.licence:
        lacks.discard("licence_link")
    return replace(one, **{k: getattr(copy, k) for k in lacks})


def _shared(opened: list[_Opened], notes: list[str]) -> set[str]:
    """Contents that stand in more than one group."""
    by_content: dict[str, list[str]] = defaultdict(list)
    for o in opened:
        by_content[o.content].append(o.of.picture)
    twice = {k: v for k, v in by_content.items() if len(v) > 1}
    if twice:
        named = some([" = ".join(v) for v in twice.values()])
        notes.append(
            f"{counted(len(twice), 'picture')} in more than one group: {named}. When one of these groups is unlearned, "
            "the other still teaches the picture, so scores can be too low. Keep each picture in one group."
        )
    return set(twice)


def _held_out(own: list[_Opened], gid: str, asked: NewSet, shared: set[str]) -> set[str]:
    """The places of a group's held-out pictures."""

    def drawn(o: _Opened) -> str:
        return hashlib.sha256(f"{asked.seed}/{gid}/{o.of.picture}".encode()).hexdigest()

    if not asked.held_out or len(own) < 2:
        return set()
    n = min(max(1, round(asked.held_out * len(own))), len(own) - 1)
    return {o.of.picture for o in sorted((o for o in own if o.content not in shared), key=drawn)[:n]}


def _listed(o: _Opened, gid: str, held_out: bool) -> Listed:
    c = o.of
    return Listed(
        picture=c.picture, group=gid, sha256=o.sha256, held_out=held_out, text=c.text, object=c.object,
        author=c.author, licence=c.licence, licence_link=c.licence_link, link=c.link,
    )  # fmt: skip


def rights_of(name: str, own: Sequence[Candidate | Listed], notes: list[str]) -> dict[str, str]:
    """What is known of a group's author, licence and links: "not stated" where nothing is."""
    out = {}
    for what in ("author", "licence"):
        stated = Counter(v for c in own if (v := getattr(c, what)))
        silent = len(own) - stated.total()
        said = some([v for v, _ in stated.most_common()]) or NOT_STATED
        out[what] = said + (f" ({NOT_STATED} for {counted(silent, 'picture')})" if stated and silent else "")
    for what in ("licence_link", "link"):
        links = {v for c in own if (v := getattr(c, what))}
        one = next(iter(links)) if len(links) == 1 else ""
        if HTTPS.fullmatch(one):
            out[what] = one
        elif links:
            notes.append(f"The group '{name}' has several {what} or one that is no https:// address; none was written.")
    return out
