"""A few training pictures of each group on the groups' screen, with whose they are, where anybody can fetch them and
they were fetched onto this machine. Elsewhere: what the model itself drew in the words of each group. The page says
which of the two it shows.
"""

from __future__ import annotations

import base64
import io
import logging
import threading
from collections.abc import Mapping, Sequence
from html import escape
from typing import TypeVar

import numpy as np
from PIL import Image

from guda_core.answers.markup import Html, code, link, note, safe
from guda_core.attribution.nearest import fetchable, fetched
from guda_core.data.dataset import Item, fitted, middle
from guda_core.data.groups import INCLUDED
from guda_core.errors import DataError
from guda_core.records import Group, GroupSet
from guda_core.service import Service
from guda_core.ui import seen
from guda_core.ui.examples import EXAMPLES, FIRST

log = logging.getLogger(__name__)
COUNT, SIDE = 4, 64  # pictures of a group, and the pixels of each
T = TypeVar("T")
ONE, MORE = ("training picture", "object"), ("training pictures", "objects")
SOME, SAME = "{count} {pictures} of each group.", "{count} {pictures} of each group, of the same {things}: {objects}."
THEIRS = "The training pictures were fetched onto the computer that runs this page. Here they are small, on white."
NOT_HERE = "The training pictures are not on the computer that runs this page. Who runs it can fetch them:"
NOT_SHOWN = "The training pictures of this set are not shown here."
FETCH = "guda groups fetch"


def chosen(items: Sequence[Item], groups: Sequence[str]) -> dict[str, list[Item]]:
    """Group id -> COUNT of its pictures, or as many as it has: of the same objects in all groups where they share so
    many, those of the examples first."""
    by_group: dict[str, dict[str, Item]] = {g: {} for g in groups}
    for item in items:
        by_group.get(item.group, {}).setdefault(item.concept or item.id, item)
    shared = [c for c in next(iter(by_group.values()), {}) if all(c in own for own in by_group.values())]
    if len(shared) < COUNT:
        return {g: _spread([i for i in items if i.group == g], COUNT) for g in groups}
    wanted = dict.fromkeys(e.object_name for e in (FIRST, *EXAMPLES))
    first = [c for c in wanted if c in shared][:COUNT]
    names = [*first, *_spread([c for c in shared if c not in first], COUNT - len(first))]
    return {g: [own[c] for c in names] for g, own in by_group.items()}


def _spread(values: Sequence[T], count: int) -> list[T]:
    """So many of the values, as far from each other as they can be; all where there are no more."""
    if len(values) <= count:
        return list(values)
    return [values[(2 * i + 1) * len(values) // (2 * count)] for i in range(count)]


def sheet(pictures: Sequence[np.ndarray]) -> str:
    """Pictures (SIDE, SIDE, 3) uint8 side by side, as a data: address of a WebP file without loss."""
    out = io.BytesIO()
    Image.fromarray(np.hstack(list(pictures))).save(out, format="WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def _cell(pictures: Sequence[np.ndarray], alt: str, said: str) -> str:
    size = f'width="{len(pictures) * SIDE}" height="{SIDE}"'
    return f'<li><img src="{sheet(pictures)}" alt="{escape(alt)}" {size}>{said}</li>'


def _listed(cells: Sequence[str], *said: str) -> Html:
    return Html(f'{note(*said)}<ul class="guda-samples">{"".join(cells)}</ul>')


def training_html(items: Sequence[Item], groups: Mapping[str, Group]) -> Html:
    """The training pictures of each group; "" where not every group has one. Raises DataError when one cannot be
    read."""
    found = chosen(items, list(groups))
    if not all(found.values()):
        return Html()
    names = {g: [_said(i) for i in some] for g, some in found.items()}
    cells = []
    for g, group in groups.items():
        credit = f"{safe(group.author)}, {link(group.licence_link, group.licence)}"
        said = f"<b>{link(group.link, group.name)}</b><span>{credit}</span>"
        cells.append(_cell([i.image(SIDE) for i in found[g]], f"{', '.join(names[g])}, by {group.name}", said))
    return _listed(cells, _told(list(names.values())), THEIRS)


def _told(names: Sequence[Sequence[str]]) -> str:
    """How many pictures there are of each group, and of what where that is the same. names: of each group's."""
    first, least, most = names[0], min(map(len, names)), max(map(len, names))
    count = seen.counted(most)
    count = count.capitalize() if least == most else f"Up to {count}"
    pictures, things = ONE if most == 1 else MORE
    same = all(own == first for own in names)
    return (SAME if same else SOME).format(count=count, pictures=pictures, things=things, objects=", ".join(first))


def _said(item: Item) -> str:
    return (item.concept or item.id.removeprefix(f"{item.group}/")).replace("-", " ")


def why_not(sets: GroupSet) -> str:
    """Why no training picture is shown, and how that is mended where anybody can fetch them."""
    command = FETCH if sets.id == INCLUDED else f"{FETCH} --set {sets.id}"
    return Html(f"{safe(NOT_HERE)} {code(command)}") if fetchable(sets) else NOT_SHOWN


def drawn_html(service: Service) -> Html:
    """What the model itself drew of each group, where there is that; and why no training picture is shown."""
    sets, why = service.group_set, why_not(service.group_set)
    where = seen.folder(service)
    cells = []
    for g, group in sets.groups.items():
        path = seen.thumbnail(where, seen.group_file(g))
        if path is None:
            continue
        try:
            with Image.open(path, formats=["PNG"]) as image:
                pixels = fitted(middle(np.asarray(image.convert("RGB"))), SIDE)
        except OSError as e:
            log.warning("A picture that the model drew is not shown. %s", e)
            continue
        own = f"In the words of {group.name}"
        cells.append(_cell([pixels], f"{own}, drawn by the model", f"<b>{safe(own)}</b>"))
    return _listed(cells, seen.DRAWN, why) if cells else note(why)


class Samples:
    """The pictures of one service's groups, made when they are first asked for; of training pictures, once."""

    def __init__(self, service: Service) -> None:
        self.service, self._made = service, Html()
        self._making = threading.Lock()

    def html(self) -> Html:
        """What is shown of the groups, and which pictures they are."""
        sets = self.service.group_set
        with self._making:
            if not self._made:
                try:
                    self._made = training_html(fetched(sets), sets.groups)
                except DataError as e:
                    log.warning("The training pictures are not shown. %s", e)
            return self._made or drawn_html(self.service)
