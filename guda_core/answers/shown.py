"""An answer in pictures: what the model would draw without each group, where its score comes from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from guda_core.answers import sentences
from guda_core.answers.markup import Html, code, image, link, note, safe
from guda_core.picture_records import Near, Shown, Strip
from guda_core.records import GroupSet, MethodInfo

TITLE_STRIP, TITLE_WHERE = "What it would draw without", "Where in the picture"
AGAIN = "The same prompt and seed, drawn by the model without one group each."
NOISED = (
    "The picture was noised up to {level} of the noise steps and drawn again, by the full model and without one group "
    "each. Only what is drawn from the same noise is compared."
)
BY = "Made with the models of {name}."
NUMBER = "The number says how far a picture is from the first one, in the model's own latents (RMS; 0: the same)."
KEYS = (("needed", "orange: explained worse without the group"), ("hindered", "blue: better"))
COLOURS = "No colour: the map says nothing here. Each map has a scale of its own."
DRAWN = "Its nats are the drop at {} draws in each range of timesteps, without the offset. So they are not the score."
TITLE_NEAR = "Looks most like these training pictures"
LIKENESS = "That is likeness, not influence. The number: 1 looks the same, 0 looks like something else."
SMALL = "The pictures are shown small, as the model saw them."
NOTHING = "the map says nothing here"
MAKE_THEM = "The command line can make such pictures. Give it the same caption:"
COMMAND = 'guda attribute PICTURE --prompt "CAPTION" --report FILE --pictures --maps'


def _cell(pixels: np.ndarray, alt: str, name: str, said: str) -> str:
    return f"<li>{image(pixels, alt)}<b>{safe(name)}</b><span>{safe(said)}</span></li>"


def _section(title: str, body: str) -> Html:
    return Html(f'<section class="guda-shown"><h3 class="guda-method">{title}</h3>{body}</section>')


def _by(s: Strip, methods: Mapping[str, MethodInfo]) -> str:
    return BY.format(name=methods[s.method].name if s.method in methods else s.method)


def strip_html(s: Strip, group_set: GroupSet, methods: Mapping[str, MethodInfo]) -> Html:
    """The pictures, those that differ most first, each with its distance, and by whose models they were drawn.

    methods: what is said of each; one that is not among them goes by its id.
    """
    cells = [_cell(s.reference, "Drawn by the full model", "Full model", "")]
    for g in s.ranked():
        name, far = group_set.groups[g].name, f"{s.distances[g]:.2f}"
        cells.append(_cell(s.pictures[g], f"Drawn without {name}, distance {far}", f"Without {name}", far))
    how = AGAIN if s.level is None else NOISED.format(level=f"{s.level:.0%}")
    said = f"{how} {_by(s, methods)} {NUMBER}"
    body = f'<ul class="guda-drawings">{"".join(cells)}</ul>{note(said)}'
    return _section(TITLE_STRIP, body)


def where_html(shown: Shown, group_set: GroupSet, methods: Mapping[str, MethodInfo]) -> Html:
    """The maps over the picture. They are of the strip's method, which is named where there is a strip. methods: as of
    `strip_html`."""
    cells = []
    for t in shown.where:
        name = group_set.groups[t.group].name
        said = (
            f"{sentences.number(t.drop, 'nats')} nats, {sentences.places(t.share)} of 100 places stand out"
            if t.share
            else NOTHING
        )
        cells.append(_cell(t.overlay, f"Where {name} was needed: {said}", name, said))
    keys = "".join(f'<span class="guda-key"><i class="{css}"></i>{safe(said)}</span>' for css, said in KEYS)
    legend = f'<div class="guda-keys">{keys}</div>'
    below = [COLOURS]
    if shown.draws:
        below.append(DRAWN.format(shown.draws))
    if shown.strip is not None:
        below.append(_by(shown.strip, methods))
    body = f'<ul class="guda-drawings guda-maps">{"".join(cells)}</ul>{legend}{note(" ".join(below))}'
    return _section(TITLE_WHERE, body)


def near_html(near: tuple[Near, ...], group_set: GroupSet, why: str = "") -> Html:
    """The training pictures most alike, with whose they are; "" for none. why: what is said where none is shown."""
    if not near:
        return Html()
    cells = []
    for n in near:
        group = group_set.groups[n.group]
        name = n.name.replace("-", " ")
        seen = "" if n.pixels is None else image(n.pixels, f"{name or 'A picture'}, by {group.name}")
        credit = f"{link(group.link, group.name)}, {safe(group.author)}, {link(group.licence_link, group.licence)}"
        far = f"{n.cosine:.2f}"
        said = f"<b>{safe(name)}: {far}</b><span>{credit}</span>" if name else f"<span>{far}: {credit}</span>"
        cells.append(f"<li>{seen}{said}</li>")
    said = SMALL if any(n.pixels is not None for n in near) else why
    more = note(LIKENESS, *([said] if said else []))
    body = f'<ul class="guda-drawings guda-near">{"".join(cells)}</ul>{more}'
    return _section(TITLE_NEAR, body)


def shown_html(shown: Shown, group_set: GroupSet, methods: Mapping[str, MethodInfo]) -> Html:
    """All pictures that there are, and why others are missing; "" for neither. methods: as of `strip_html`."""
    strip = strip_html(shown.strip, group_set, methods) if shown.strip is not None and shown.strip.pictures else ""
    command = [Html(f"{MAKE_THEM} {code(COMMAND)}")] if shown.by_command else []
    missing = note(shown.missing, *command) if shown.missing else ""
    return Html(strip + (where_html(shown, group_set, methods) if shown.where else "") + missing)
