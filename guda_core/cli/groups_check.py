"""What `guda groups check` says of a set's pictures: how they are shared out, captions with their anchors, warnings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any
from unicodedata import normalize

import numpy as np
from rich.table import Table

from guda_core.cli.terminal import columned
from guda_core.data.captions import NoCaptions, captioner_of
from guda_core.data.dataset import Item, fitted, middle
from guda_core.data.marks import marks_of
from guda_core.data.own.found import counted, some, too_long
from guda_core.data.own.near import SIDE, Alike, Copies
from guda_core.diffusion.sizes import Size, sizes
from guda_core.errors import DataError, ImageError
from guda_core.file_names import DEVICE_SAID, is_devices
from guda_core.records import GroupSet

SHOWN = 10  # captions
FEW = 12  # pictures trained on: with 4, GUDA named a planted style no more often than chance (docs/results/planted.md)
WORDS = 55  # about what Stable Diffusion reads: 75 tokens


def counts_table(group_set: GroupSet, train: Sequence[Item], held: Sequence[Item]) -> Table:
    """Of each group: trained on, held out, with a caption of their own, objects known."""
    how = "of their own shapes" if group_set.fit == "bucket" else f"made square by: {group_set.fit}"
    known = any(i.concept for i in train)
    title = f"{len(train):,} pictures trained on, {len(held):,} held out, {how}"
    table = columned(title, "group", "trained on", "held out", "with a caption", *(["objects"] if known else []))
    for gid in group_set.groups:
        own, out = [i for i in train if i.group == gid], [i for i in held if i.group == gid]
        captions, objects = sum(bool(i.caption) for i in (*own, *out)), len({i.concept for i in own if i.concept})
        table.add_row(gid, *(f"{n:,}" for n in (len(own), len(out), captions, *([objects] if known else []))))
    return table


class Sizes:
    """Which size each picture of a set that keeps shapes is shown in; hears of it when a picture is opened."""

    def __init__(self, group_set: GroupSet) -> None:
        self.resolution, self.of = group_set.resolution, dict[str, Size]()

    def thumbnail(self, item: Item) -> np.ndarray:
        """The picture as (32, 32, 3) uint8; notes its size."""
        pixels = item.seen(self.resolution)
        self.of[item.id] = (pixels.shape[1], pixels.shape[0])
        return fitted(middle(pixels), SIDE)

    def counts(self, train: Sequence[Item], held: Sequence[Item]) -> dict[str, dict[str, int]]:
        """ "WIDTHxHEIGHT" -> how many are trained on and held out, of all sizes that there are, the square first."""
        n, out = (Counter(self.of.get(i.id) for i in items) for items in (train, held))
        there = [s for s in sizes(self.resolution) if n[s] or out[s]]
        return {f"{w}x{h}": {"trained_on": n[w, h], "held_out": out[w, h]} for w, h in there}


def sizes_table(counts: Mapping[str, Mapping[str, int]], resolution: int) -> Table:
    """How many pictures have which size."""
    title = f"Sizes in which a model of {resolution} px sees them. A batch of unlearning has one size."
    table = columned(title, "width x height", "trained on", "held out", fold=False)
    for size, of in counts.items():
        table.add_row(size.replace("x", " x "), f"{of['trained_on']:,}", f"{of['held_out']:,}")
    return table


def anchors(group_set: GroupSet, train: Sequence[Item]) -> Iterator[tuple[Item, str, str]]:
    """(picture, its caption, its anchor) of `SHOWN` pictures of all groups in turn, drawn as unlearning with the usual
    settings draws them."""
    import torch

    from guda_core.unlearning.config import UnlearnConfig
    from guda_core.unlearning.guda_c import anchor_odds

    captioner, rng = captioner_of(group_set), torch.Generator().manual_seed(0)
    ids = list(group_set.groups)
    of = {g: [i for i in train if i.group == g] for g in ids}
    turns = [of[g][k] for k in range(SHOWN) for g in ids if k < len(of[g])]
    for item in turns[:SHOWN]:
        odds = anchor_odds(captioner, item.group, None, UnlearnConfig(selection="uniform"))
        other = ids[int(torch.multinomial(odds, 1, generator=rng))]
        yield item, captioner.caption(item, rng), captioner.anchor(item, other, rng)


def anchors_table(rows: Sequence[tuple[Item, str, str]]) -> Table:
    """Captions beside their anchors."""
    title = "What unlearning teaches: a picture with this caption as if it had that anchor"
    table = columned(title, "picture", "caption", "anchor")
    for item, caption, anchor in rows:
        table.add_row(item.id, caption, anchor)
    return table


def _devices(group_set: GroupSet) -> Iterator[str]:
    """Ids that no folder may have on Windows."""
    for name in (group_set.id, *group_set.groups):
        if is_devices(name):
            yield DEVICE_SAID.format(name)


def _weak(
    group_set: GroupSet, train: Sequence[Item], held: Sequence[Item], seen: tuple[int, int] | None
) -> Iterator[str]:
    """Groups with few pictures, or none held out. seen: as of `warnings`."""
    from guda_core.unlearning.config import UnlearnConfig

    usual = UnlearnConfig().loop
    steps, batch = seen or (usual.steps, usual.batch)
    how = "Unlearning" if seen else "Unlearning (counted for a small model; name yours with --model)"
    n, out = Counter(i.group for i in train), Counter(i.group for i in held)
    for gid in group_set.groups:
        if not n[gid]:
            yield f"'{gid}' has no picture to train on and cannot be unlearned."
        elif n[gid] < FEW:
            times = steps * batch // n[gid]
            yield (
                f"'{gid}' has {counted(n[gid] + out[gid], 'picture')}, {n[gid]} to train on. {how} shows each "
                f"about {times:,} times and may learn these pictures more than a style. Read its score with great care."
            )
    none = [gid for gid in group_set.groups if n[gid] and not out[gid]]
    if none:
        yield f"Nothing of {', '.join(none)} is held out: the effect on unseen pictures is not measured there."


def _captions(group_set: GroupSet, train: Sequence[Item]) -> Iterator[str]:
    """Captions that are not there, or say the group elsewhere than in its phrase."""
    captioner = captioner_of(group_set)
    if isinstance(captioner, NoCaptions):
        yield (
            "The set has no captions (no field 'caption'). A model that reads prompts needs them: caption and anchor "
            'would be the same. Give every group a phrase: `guda groups new` with --phrase "by {name}".'
        )
    elif all(g.phrase for g in group_set.groups.values()):
        bare = Counter(i.group for i in train if not captioner.content(i))
        if bare:
            each = some([f"{gid} {n:,}" for gid, n in bare.items()], 10)
            yield (
                f"Of {counted(bare.total(), 'picture')} nothing is known but the group, so caption and anchor are "
                f"phrases alone ({each}). Captions help: a .txt beside a picture."
            )
        names = {gid: _named(g.name) for gid, g in group_set.groups.items()}
        still = Counter(i.group for i in train if names[i.group].search(normalize("NFC", captioner.content(i))))
        for gid, n in still.items():
            what = f"{counted(n, 'caption')} of '{gid}' {'names' if n == 1 else 'name'} the group"
            yield (
                f"{what} outside its phrase '{group_set.groups[gid].phrase}', and so "
                f"{'does its anchor' if n == 1 else 'do their anchors'}. Choose the phrase as the captions say it."
            )


def _named(name: str) -> re.Pattern[str]:
    """Finds a name in a caption, also as a trigger word spells it: "fay_wu" for "Fay Wu"."""
    name = normalize("NFC", name)
    between = r"[\s_-]+".join(re.escape(part) for part in re.split(r"[\s_-]+", name) if part)
    return re.compile(rf"(?<![^\W_]){between or re.escape(name)}(?![^\W_])", re.I)


def _long(group_set: GroupSet, train: Sequence[Item], tokens: Callable[[str], tuple[int, int]] | None) -> Iterator[str]:
    """Captions that are longer than a prompt may be, or than the model reads."""
    captioner = captioner_of(group_set)
    said = {i.id: captioner.prompt(i) for i in train if i.caption}
    yield from too_long(said)
    found = {k: (len(text.split()), WORDS) if tokens is None else tokens(text) for k, text in said.items()}
    long = [k for k, (n, most) in found.items() if n > most]
    if long:
        many, (n, most) = counted(len(long), "caption has", "captions have"), found[long[0]]
        first = f"the first is that of {long[0]} ({n})"
        if tokens is None:
            yield (
                f"{many} more than {most} words; {first}. Stable Diffusion reads about so many. The phrase may be "
                "cut off. `--model NAME` counts exactly."
            )
        else:
            yield f"{many} more than the {most} tokens that the model reads; {first}. The phrase may be cut off."


def copies_said(copies: Copies) -> Iterator[str]:
    """Pictures that stand in two groups, or on both sides of one, and those that could not be opened; in sentences."""

    def named(found: Sequence[Alike]) -> str:
        return "; ".join(some(f.pictures, 4).replace(", ", " = ") for f in found[:SHOWN]) + (
            f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        )

    if between := [f for f in copies.found if f.between]:
        yield (
            f"{counted(len(between), 'picture stands', 'pictures stand')} in more than one group, the same or nearly: "
            f"{named(between)}. When one of these groups is unlearned, the other still teaches the picture, so scores "
            "can be too low. Keep each picture in one group."
        )
    if leaked := [f for f in copies.found if f.leaked]:
        yield (
            f"{counted(len(leaked), 'picture is', 'pictures are')} both trained on and held out, the same or nearly: "
            f"{named(leaked)}. The effect on unseen pictures is then measured on seen ones. Keep one of each."
        )
    if copies.unread:
        yield (
            f"{counted(len(copies.unread), 'picture')} could not be opened to look for copies: {some(copies.unread)}."
        )


def asking(items: Sequence[Item], tell: Callable[[float], None] = lambda done: None) -> list[str]:
    """Ids of the pictures whose files ask not to be used to train AI, or only under terms of their own. tell: hears the
    share done."""
    found = []
    for n, item in enumerate(items, 1):
        with suppress(DataError, ImageError):  # one that cannot be read is told by the search for copies
            if item.file is not None and marks_of(item.file()).asks:
                found.append(item.id)
        tell(n / len(items))
    return found


def asking_said(found: Sequence[str], n: int) -> str:
    """How many of n pictures ask that, in a sentence."""
    ask, s, their = ("asks", "s", "its") if len(found) == 1 else ("ask", "", "their")
    return (
        f"{len(found):,} of {counted(n, 'picture')} {ask} not to be used to train AI, or allow{s} it only under "
        f"{their} own terms (PLUS data mining, Content Credentials): {some(found)}. Nothing is "
        "left out because of it: whether you may use them is for you to find out."
    )


def record(
    group_set: GroupSet,
    train: Sequence[Item],
    held: Sequence[Item],
    said: Sequence[str],
    copies: Copies | None,
    by_size: Mapping[str, Mapping[str, int]] | None = None,
    asks: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What the check found, as a JSON object. copies: None where they were not looked for. by_size: of a set
    that keeps shapes (`Sizes.counts`). asks: what `asking` found; None where it was not asked."""
    n, out = Counter(i.group for i in train), Counter(i.group for i in held)
    captioned = Counter(i.group for i in (*train, *held) if i.caption)
    counts = {
        gid: {"trained_on": n[gid], "held_out": out[gid], "with_caption": captioned[gid]} for gid in group_set.groups
    }
    found: dict[str, Any] = {"group_set": group_set.id, "fit": group_set.fit, "groups": counts, "warnings": list(said)}
    if by_size:
        found["sizes"] = by_size
    if copies is not None:
        found["copies"] = [asdict(f) for f in copies.found]
        found["not_opened"] = list(copies.unread)
    if asks is not None:
        found["asks_not_to_train_ai"] = list(asks)
    return found


def warnings(
    group_set: GroupSet,
    train: Sequence[Item],
    held: Sequence[Item],
    tokens: Callable[[str], tuple[int, int]] | None = None,
    seen: tuple[int, int] | None = None,
) -> list[str]:
    """What is weak or will not work, in sentences. tokens: of the model, prompt -> (its tokens, the most it reads).
    seen: (steps, pictures of the group in each) that unlearning the model takes; None: which model is not known."""
    return [
        *_devices(group_set),
        *_weak(group_set, train, held, seen),
        *_captions(group_set, train),
        *_long(group_set, train, tokens),
    ]
