"""What the model has seen, on the first screen: its groups, with pictures that the model itself drew of them.

The pictures lie in the run's folder `drawn/` (`python -m experiments.drawn`). They are shown only for the very model
that drew them. No picture by anyone else is shown.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from guda_core import paths
from guda_core.answers.markup import Html, note, safe
from guda_core.service import Service

LIST = "drawn.json"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
DRAWN = "The model drew these itself: one object, in the words of each group."
OWN = (
    "<a href=\"#\" onclick=\"[...document.querySelectorAll('[role=tab]')].find(t => t.innerText === 'Style groups')"
    '?.click(); return false;">How to ask about your own artists</a>'
)


def folder(service: Service) -> Path | None:
    """The folder of this model's own pictures; None where there are none that this very model drew."""
    made = service.provenance()
    found = paths.run(made.model, service.group_set.id).file("drawn")
    try:
        told = json.loads((found / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(told, dict) and told.get("base_sha256") == made.sha256 else None


def thumbnail(where: Path | None, name: str) -> str | None:
    """The path of one of the pictures in that folder; None where it is not there."""
    return str(where / name) if where is not None and (where / name).is_file() else None


def group_file(group: str) -> str:
    """The name of a group's picture."""
    return f"group-{group}.png"


def counted(n: int) -> str:
    """A number as it is read: "eight", "30"."""
    return NUMBERS[n] if n < len(NUMBERS) else str(n)


def seen(service: Service, where: Path | None) -> Html:
    """Which groups the model learned from, with a picture of each where there is one. where: the pictures' folder."""
    sets, made = service.group_set, service.provenance()
    many = counted(len(sets.groups))
    size = f", at {made.resolution} by {made.resolution} pixels" if made.resolution else ""
    said = f"This page asks about {many} groups of training pictures{size}: {sets.name}. It knows of no others."
    if made.only_groups:
        said = f"This model has seen only the pictures of these {many} groups{size}: {sets.name}."
    cells = "".join(f"<li>{_picture(where, g)}<span>{safe(group.name)}</span></li>" for g, group in sets.groups.items())
    by = (DRAWN,) if where is not None else ()
    return Html(f'<div class="guda-seen">{note(Html(f"<b>{safe(said)}</b> {OWN}."), *by)}<ul>{cells}</ul></div>')


def _picture(where: Path | None, group: str) -> str:
    path = thumbnail(where, group_file(group))
    if path is None:
        return ""
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="">'
