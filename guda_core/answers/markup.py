"""The HTML of an answer's parts. Every function escapes the plain text it is given; only `Html` passes as it is."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Self

import numpy as np
from PIL import Image

from guda_core.answers import sentences
from guda_core.answers.verdict import Verdict, is_out
from guda_core.records import Attribution, GroupSet, Query, Scope

MOST_TEXT = 5_000  # characters of one plain text on a page: names and notes may come from strangers, and come often


class Html(str):
    """Markup made by this module: it is not escaped again. Half (surrogate) characters, which names of files and
    reports of strangers may hold and no page can, are written as their codes."""

    __slots__ = ()

    def __new__(cls, text: str = "") -> Self:
        return super().__new__(cls, text.encode("utf-8", "backslashreplace").decode())


def safe(text: object) -> Html:
    """Plain text made ready for a page, cut after `MOST_TEXT` characters; markup of this module unchanged."""
    if isinstance(text, Html):
        return text
    plain = str(text)
    return Html(escape(plain if len(plain) <= MOST_TEXT else f"{plain[:MOST_TEXT]} ..."))


def heading(text: str) -> Html:
    return Html(f'<h2 class="guda-heading">{safe(text)}</h2>')


def note(*texts: str) -> Html:
    """Paragraphs in a quieter colour; "" when there is none."""
    return Html('<div class="guda-note">' + "".join(f"<p>{safe(t)}</p>" for t in texts) + "</div>" if texts else "")


def text(*paragraphs: str) -> Html:
    return Html('<div class="guda-text">' + "".join(f"<p>{safe(p)}</p>" for p in paragraphs) + "</div>")


def listed(items: Iterable[str], tag: str = "ul", css: str = "") -> Html:
    """A list; tag "ul" or "ol"."""
    body = "".join(f"<li>{safe(i)}</li>" for i in items)
    return Html(f'<div class="guda-text"><{tag} class="{css}">{body}</{tag}></div>')


def banner(*texts: str) -> Html:
    """What must not be overlooked."""
    return Html('<div class="guda-banner" role="note">' + "".join(f"<p>{safe(t)}</p>" for t in texts) + "</div>")


def code(value: str) -> Html:
    return Html(f"<code>{safe(value)}</code>")


def link(url: str, shown: str) -> Html:
    """A link to a web address; anything else, and an address that is too long, is only text."""
    if not url.startswith(("https://", "http://")) or len(url) > MOST_TEXT:
        return safe(shown)
    return Html(f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{safe(shown)}</a>')


def table(
    name: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: str = "", css: str = ""
) -> Html:
    """A table that scrolls by itself when it is too wide, also by keyboard.

    name: what it is, for those who hear it. numbers: a "n" for each column of numbers, e.g. "n..n" for four columns.
    """
    marks = [' class="n"' if c == "n" else "" for c in numbers.ljust(len(head), ".")]
    top = "".join(f'<th scope="col"{m}>{safe(h)}</th>' for h, m in zip(head, marks, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{safe(v)}</td>" for v, m in zip(row, marks, strict=True)) + "</tr>" for row in rows
    )
    return Html(
        f'<div class="guda-scroll" tabindex="0" role="region" aria-label="{safe(name)}">'
        f'<table class="guda-table {css}" aria-label="{safe(name)}">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def says_html(sentence: str) -> Html:
    """A plain sentence."""
    return Html(f'<p class="guda-says" aria-live="polite">{safe(sentence)}</p>')


def chip_html(said: str, kind: str) -> Html:
    """A word in a coloured frame. kind: "good", "unsure" or "quiet"."""
    return Html(f'<span class="guda-chip {safe(kind)}">{safe(said)}</span>')


def verdict_html(v: Verdict) -> Html:
    """The answer that is read first: headline and chips, a plain line, the figures."""
    chips = "".join(f" {chip_html(c.text, c.kind)}" for c in v.chips)
    lines = (("guda-plain", v.plain), ("guda-figures", v.figures))
    below = "".join(f'<p class="{css}">{safe(said)}</p>' for css, said in lines if said)
    return Html(
        f'<div class="guda-verdict" aria-live="polite">'
        f'<h2 class="guda-says">{safe(v.headline)}{chips}</h2>{below}</div>'
    )


def folded(summary: str, body: str, *, css: str = "", open_: bool = False) -> Html:
    """What unfolds when its summary is pressed."""
    return Html(
        f'<details class="guda-fold {css}"{" open" if open_ else ""}><summary>{safe(summary)}</summary>{body}</details>'
    )


def unasked(scores: Html, scope: Scope | None) -> Html:
    """Scores, folded away where the picture is out of scope."""
    return folded(sentences.ALL_THE_SAME, scores, css="guda-out") if is_out(scope) else scores


def status_html(what: str, progress: float | None = None) -> Html:
    """What is going on, with a bar when progress (0 to 1) is known."""
    bar = "" if progress is None else f'<progress max="1" value="{progress:.3f}" aria-label="Progress"></progress>'
    return Html(f'<div role="status"><span>{safe(what)}</span>{bar}</div>')


def image(pixels: np.ndarray, alt: str) -> Html:
    """A picture within the page. pixels: (H, W, 3) uint8. alt: the text for those who cannot see it."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return Html(f'<img src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}" alt="{safe(alt)}">')


def small_image(pixels: np.ndarray) -> Html:
    """A picture made small for a list, beside words that say what it is. pixels: (H, W, 3) uint8."""
    small = Image.fromarray(pixels)
    small.thumbnail((64, 64))
    return image(np.asarray(small), "")


def picture_html(pixels: np.ndarray, prompt: str) -> Html:
    """The picture as it is scored, each of its pixels as it is."""
    alt = f"The picture as it is scored{f', made for: {prompt}' if prompt else ''}"
    return Html(f'<figure class="guda-picture">{image(pixels, alt)}</figure>')


def caption_html(prompt: str) -> Html:
    """Which caption a picture was scored with; a long one scrolls by itself on a screen."""
    return Html(f'<span class="guda-caption">{safe(sentences.scored_with(prompt))}</span>')


def notes_html(query: Query) -> Html:
    """The caption a picture is scored with, and what was done to it."""
    return note(caption_html(query.prompt), *query.preparation)


def scores_html(a: Attribution, group_set: GroupSet, name: str) -> Html:
    """The same figures as the bars: rank, group, score, 95% interval, both parts where there are two."""
    parts = ("Offset", "Drop") if a.has_offset else ()
    why = (said,) if (said := sentences.remarks(a)) else ()
    head = ("Rank", "Group", f"Score ({a.unit})", "95% interval", *parts, *why)
    numbers = "n.nn" + "n" * len(parts)
    return table(f"Scores by {name}", head, sentences.rows(a, group_set), numbers=numbers, css="guda-scores")


def makers(group_set: GroupSet) -> Html:
    """Who drew each group, under which licence, with links."""
    rows = [(link(g.link, g.name), g.author, link(g.licence_link, g.licence)) for g in group_set.groups.values()]
    return folded(
        "Who drew what", table("Who drew each group", ("Group", "Drawn by", "Licence"), rows), css="guda-makers"
    )
