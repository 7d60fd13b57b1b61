"""The page of a report for people: one HTML file that asks for nothing else and runs nothing.

The same record and files give the same bytes. Every text is escaped; the file's own policy (CSP) forbids scripts and
everything that would be loaded. The answer is told in the words of the app (`guda_core.answers`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guda_core.answers import sentences
from guda_core.answers.look import COLOURS, RULES, variables
from guda_core.answers.markup import (
    Html,
    code,
    heading,
    link,
    listed,
    note,
    picture_html,
    safe,
    scores_html,
    table,
    unasked,
    verdict_html,
)
from guda_core.answers.other_captions import captions_html
from guda_core.answers.plots import bars
from guda_core.answers.shown import near_html, shown_html
from guda_core.answers.verdict import Verdict, is_out, verdict
from guda_core.picture_records import Shown
from guda_core.reports.opened import Told
from guda_core.reports.page_tables import absences, circumstances, drawing, hashes
from guda_core.reports.picture_files import pixels_of
from guda_core.reports.record import NOT_ASSESSED

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
IMAGE = re.compile(rb'(?<=src="data:image/png;base64,)[A-Za-z0-9+/=]*')
OWN_RULES = Path(__file__).with_name("report_page.css").read_text(encoding="utf-8")
PAGE_COLOURS = {  # light, dark; the names are the app's
    "body-text-color": ("#1f2937", "#f3f4f6"),
    "body-text-color-subdued": ("#4b5563", "#d1d5db"),
    "body-background-fill": ("#ffffff", "#111827"),
    "border-color-primary": ("#d1d5db", "#4b5563"),
    "link": ("#1d4ed8", "#93c5fd"),
}
SIDE, SMALL = 512, 192  # pixels of the picture on the page, and of each in a strip or a map, at most
MOST_SHOWN = 12  # pictures of a strip, and maps, on the page; the zip holds them all
ACROSS = 4  # methods in one table
LONGEST = 300  # characters of the caption beside the picture; a table holds it whole
OWN_PICTURE = "It was not asked whether the model could have made this picture: the model made it itself."
NO_TRAINING_PICTURES = "A report holds no training pictures."
NOT_TOLD = (
    "The report says neither which file the picture comes from nor how the model drew it. It was not checked whether "
    "the model could have made it."
)
CHECK = (
    "Anyone can compute this report again and see whether the numbers are true. Install GUDA and the same model, and "
    "give it the report's zip:"
)
CHECKED = (
    "It says: equal, within tolerance, or different and where. The app does the same on its Evidence tab. This page "
    "itself proves nothing: it is a drawing of report.json."
)


def page(told: Told, pixels: np.ndarray) -> bytes:
    """The page as a file. pixels: (H, W, 3) uint8, the prepared picture."""
    record = told.record
    title = f"GUDA report: {summary(told).headline}"
    body = "".join(
        (
            f"<header><h1>{safe(sentences.TITLE)}</h1>{note(_about(record))}</header>",
            answer_html(told, pixels),
            _section("Other methods", _others(told)),
            _section("What this means", listed(record["limits"])),
            _section("Who drew what", _makers(told)),
            _section("How it was computed", circumstances(record)),
            _section("Check it", note(CHECK) + Html(f"<pre>{code('guda replay FILE.zip')}</pre>") + note(CHECKED)),
            _section("SHA-256 of everything that was used", hashes(record)),
            _section("What this report does not hold", absences(record)),
        )
    )
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{safe(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f"<style>{_rules()}</style></head>\n<body><main>{body}</main></body></html>\n"
    )
    return text.encode("utf-8", "backslashreplace")


def is_same_page(a: bytes, b: bytes) -> bool:
    """Whether a page is the page b, drawn here: the same text and pictures. How these are packed is up to a library."""
    if IMAGE.sub(b"", a) != IMAGE.sub(b"", b):
        return False
    return all(x == y or _is_same_image(x, y) for x, y in zip(IMAGE.findall(a), IMAGE.findall(b), strict=True))


def _is_same_image(a: bytes, b: bytes) -> bool:
    try:
        own = pixels_of(base64.b64decode(b))
        return np.array_equal(pixels_of(base64.b64decode(a), own.size), own)
    except Exception:  # as in `picture_files`: whatever Pillow raises
        return False


def summary(told: Told) -> Verdict:
    """The verdict of a report, as the app says it."""
    return verdict(told.answers, told.group_set, told.asked, told.methods, scope=told.scope, over=True)


def answer_html(told: Told, pixels: np.ndarray) -> Html:
    """What is read first: verdict, picture, bars of the main method and their table, strip and maps."""
    a, record = told.main, told.record
    head = verdict_html(summary(told)) + note(*_scope(told))
    prompt = record["picture"]["prompt"]
    said = sentences.scored_with(sentences.short(prompt, LONGEST))
    left = picture_html(fitting(pixels, SIDE), prompt) + note(said, *drawing(record), *record["picture"]["preparation"])
    near = () if is_out(told.scope) else tuple(replace(n, pixels=None) for n in told.shown.near)
    left += near_html(near, told.group_set, NO_TRAINING_PICTURES)
    right = ""
    if a is not None and a.groups:
        info = told.methods[a.method]
        right = f'<h3 class="guda-method">{safe(info.name)}: what each group gives</h3>'
        right += bars(a, told.group_set, info.name) + scores_html(a, told.group_set, info.name)
        right = unasked(Html(right), told.scope)
    pictures = shown_html(_small(told.shown), told.group_set, told.methods)
    more = captions_html(told.tried, told.group_set, told.scope, _named(told)) + pictures
    return Html(f'{head}<div class="guda-two"><div>{left}</div><div>{right}</div></div>{more}')


def _named(told: Told) -> str:
    return told.methods[told.tried[0].answer.method].name if told.tried else ""


def _about(record: Mapping[str, Any]) -> str:
    when = sentences.moment(record["date"])
    return f"{record['model']['name']}. Groups: {record['group_set']['name']}. Computed {when}."


def _scope(told: Told) -> list[str]:
    """What is said of the scope below the verdict; nothing where that says it."""
    if told.scope is not None:
        return [] if is_out(told.scope) else [sentences.scope_note(told.scope)]
    if "drawn" in told.record["picture"]:
        return [OWN_PICTURE]
    return [NOT_TOLD if told.record["picture"]["file_sha256"] is None else NOT_ASSESSED]


def _others(told: Told) -> Html:
    """Every other method: its bars in its own unit, and one table of all methods' figures."""
    main = told.main
    others = [told.answers[m] for m in told.asked if m in told.answers and told.answers[m] is not main]
    others = [a for a in others if a.groups]
    if not others:
        return Html()
    cells = []
    for a in others:
        info = told.methods[a.method]
        cells.append(
            f'<section><h3 class="guda-method">{safe(info.name)}</h3>{bars(a, told.group_set, info.name)}</section>'
        )
    tables = [_figures(told, [a.method for a in others[i : i + ACROSS]]) for i in range(0, len(others), ACROSS)]
    said = note("Each method has its own unit, so compare the order of the groups and not the numbers.")
    return unasked(Html(f'{said}<div class="many">{"".join(cells)}</div>{"".join(tables)}'), told.scope)


def _figures(told: Told, methods: list[str]) -> Html:
    """Groups down, methods across: rank, score and interval."""
    ranks = {m: {g: i for i, g in enumerate(told.answers[m].ranked(), 1)} for m in methods}
    rows = []
    main = told.main.ranked() if told.main is not None else []
    for g in dict.fromkeys([*main, *told.group_set.groups]):
        row = [told.group_set.groups[g].name]
        for m in methods:
            a = told.answers[m]
            s = a.groups.get(g)
            if s is None or s.score is None:
                row += ["-", "-" if s is None else sentences.STATUS[s.status]]
            else:
                span = sentences.interval(s, a.unit)
                row += [str(ranks[m][g]), f"{sentences.score(s, a.unit)}{f' ({span})' if span else ''}"]
        rows.append(row)
    head = ["Group", *(part for m in methods for part in ("Rank", f"{told.methods[m].name} ({told.answers[m].unit})"))]
    return table("Rank, score and 95% interval by the other methods", head, rows, numbers="." + "n." * len(methods))


def _makers(told: Told) -> Html:
    groups = told.group_set.groups.values()
    rows = [(link(g.link, g.name), g.author, link(g.licence_link, g.licence)) for g in groups]
    return table("Who drew each group", ("Group", "Drawn by", "Licence"), rows, css="makers")


def _section(title: str, body: str) -> str:
    return f"<section>{heading(title)}{body}</section>" if body else ""


def _rules() -> str:
    colours = COLOURS | PAGE_COLOURS
    light = f":root {{{variables(colours, dark=False)}}}"
    dark = f"@media screen and (prefers-color-scheme: dark) {{:root {{{variables(colours, dark=True)}}}}}"
    return f"{light}\n{dark}\n{RULES}\n{OWN_RULES}"


def fitting(pixels: np.ndarray, side: int) -> np.ndarray:
    """A picture made smaller where a side is longer than that. pixels: (H, W, 3) uint8."""
    longest = max(pixels.shape[:2])
    if longest <= side:
        return pixels
    size = tuple(max(1, round(n * side / longest)) for n in (pixels.shape[1], pixels.shape[0]))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))  # type: ignore[arg-type]


def _small(shown: Shown) -> Shown:
    """Strip and maps as the page holds them: the first ones, small."""
    strip = shown.strip
    if strip is not None:
        first = strip.ranked()[:MOST_SHOWN]
        pictures = {g: fitting(strip.pictures[g], SMALL) for g in first}
        distances = {g: strip.distances[g] for g in first}
        strip = replace(strip, reference=fitting(strip.reference, SMALL), pictures=pictures, distances=distances)
    where = tuple(replace(t, overlay=fitting(t.overlay, SMALL)) for t in shown.where[:MOST_SHOWN])
    return replace(shown, strip=strip, where=where, missing="")  # `absent` says it
