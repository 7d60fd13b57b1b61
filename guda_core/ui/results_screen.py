"""A table of scores as a screen (`guda app --results FOLDER`, GUDA_RESULTS): filter, sort, turn pages, open a picture.

The folder is named by who starts the app, never by a visitor. A page of rows is asked of the Parquet files; no more
rows than it shows are held.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import gradio as gr

from guda_core.answers import sentences
from guda_core.answers.markup import Html, banner, caption_html, code, folded, heading, note, safe, table, text
from guda_core.answers.plots import bars
from guda_core.answers.verdict import lead_said
from guda_core.records import VERDICTS, Attribution, Group, GroupScore, GroupSet
from guda_core.scoring.asking import ORDERS, SCOPES, STATUSES, Asked, Results
from guda_core.scoring.summary import Summary, left_out
from guda_core.scoring.table_rows import Row
from guda_core.ui import words
from guda_core.ui.blocks import QUICK, block
from guda_core.ui.callbacks import explained

VARIABLE = "GUDA_RESULTS"
TAB = "Results"
ROWS = 50  # of a page
ANY = "all"
HEAD = ("Picture", "Method", "Rank", "Group", "Score", "95% interval", "Scope", "Status")
NO_PICTURE = "Choose a picture of this page, or type its name."
WINDOWS = os.name == "nt"
READ_IN_QUOTES = re.compile(r'["$`%\x00-\x1f\u201c-\u201e]|\\$')  # by cmd, PowerShell or C's rules for arguments
LONGEST = 500  # characters that a visitor may ask for


def given() -> Results | None:
    """The results that whoever started the app named; None where nobody did. Raises OptionError: there are none."""
    folder = os.environ.get(VARIABLE, "")
    return Results(folder) if folder else None


@dataclass(frozen=True)
class Screen:
    """The parts of this screen. asked: what filters, in the order of `asked_of`. start: the first row of the page."""

    head: gr.HTML
    asked: list[Any]
    order: gr.Dropdown
    back: gr.Button
    on: gr.Button
    start: gr.State
    where: gr.HTML
    rows: gr.HTML
    picture: gr.Dropdown
    opened: gr.HTML


def draw(results: Results) -> Screen:
    """Draw the screen inside the current tab."""
    head = block(_head(results))
    with gr.Row():
        name = gr.Textbox("", label="Picture's name contains", min_width=150, max_length=LONGEST)
        groups, methods = _choices(results)
        group = gr.Dropdown(groups, value="", label="Group", min_width=120)
        method = gr.Dropdown(methods, value="", label="Method", min_width=110)
        scope = gr.Dropdown([(ANY, ""), *SCOPES], value="", label="Scope", min_width=110)
        status = gr.Dropdown([(ANY, ""), *STATUSES], value="", label="Status", min_width=110)
        order = gr.Dropdown(list(ORDERS), value="picture", label="Sorted by", min_width=110)
    first = gr.Checkbox(True, label="Only the first group of each picture and method, or why there is none")
    start, *shown, names, count = page(results, Asked(first=True), "picture", 0)
    where, rows = (block(part) for part in shown)
    with gr.Row():
        back = gr.Button("Previous page", size="sm", min_width=120, interactive=start > 0)
        on = gr.Button("Next page", size="sm", min_width=120, interactive=start + ROWS < count)
    picture = gr.Dropdown(names, value=None, label="Open a picture", allow_custom_value=True)
    opened = block(note(NO_PICTURE))
    asked = [name, group, method, scope, status, first]
    return Screen(head, asked, order, back, on, gr.State(0), where, rows, picture, opened)


def _head(results: Results) -> Html:
    """The table as a whole, and what has to be said of it."""
    whole = results.summary()
    told = whole.told()
    return Html(heading("Scored pictures") + text(said(whole)) + (banner(*told) if told else ""))


def _choices(results: Results) -> tuple[list[tuple[str, str]], list[Any]]:
    """Of groups and of methods."""
    groups = [(n, g) for g, n in results.groups().items()]
    return [(ANY, ""), *groups], [(ANY, ""), *results.methods()]


def said(s: Summary) -> Html:
    """The table as a whole, in a few sentences."""
    counts = f"{s.pictures:,} pictures: {s.scored:,} scored, {s.refused:,} refused, {s.failed:,} failed."
    away = f" The model could not have made {s.scopes['out of scope']:,} of them." if "out of scope" in s.scopes else ""
    cut = f" {left_out(s.cut)}" if s.cut else ""
    made = str(s.made_from.get("model", {}).get("name", "?"))
    return safe(f"{counts}{away}{cut} Model: {made}.")


def asked_of(name: str, group: str, method: str, scope: str, status: str, first: bool) -> Asked:
    """What the controls ask for."""
    return Asked(
        text=str(name or "")[:LONGEST], group=str(group or ""), method=str(method or ""), scope=str(scope or ""),
        status=str(status or ""), first=bool(first),
    )  # fmt: skip


def turns(start: int, count: int) -> list[Any]:
    """Whether there is a page before this one, and one after it. start: its first row; count: of all rows."""
    return [gr.update(interactive=start > 0), gr.update(interactive=start + ROWS < count)]


def page(results: Results, asked: Asked, order: str, start: int) -> tuple[int, Html, Html, list[str], int]:
    """(first row, which rows these are, the rows, the pictures in them, number of all rows) of a page that begins at
    `start`, or of the last page."""
    with results.at_once():
        count = results.count(asked)
        start = max(0, min(int(start), (count - 1) // ROWS * ROWS))
        rows = results.rows(asked, order=order, limit=ROWS, start=start)
        by = str(results.made_from().get("model", {}).get("name", "?"))  # the table may have been made anew
    where = f"Rows {start + 1:,} to {start + len(rows):,} of {count:,}, scored by {by}." if rows else "No rows."
    cells = [_cells(asked.unasked(r)) for r in rows]
    shown = table("Rows of the table of scores", HEAD, cells, numbers="..n.nn", css="guda-told") if rows else Html("")
    return start, note(where), shown, _names(rows), count


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(r["picture"] for r in rows))


def _cells(r: Row) -> list[object]:
    ok = r["score"] is not None
    s = GroupScore(r["score"], r["low"], r["high"])
    group = r["group_name"] or (r["scope"] if r["scope"] == "out of scope" else "-")
    told = r["status"] if not r["reason"] else f"{r['status']}: {r['reason']}"
    return [
        r["picture"], r["method"] or "-", r["rank"] or "-", group,
        f"{sentences.score(s, r['unit'])} {r['unit']}" if ok else "-", sentences.interval(s, r["unit"]) or "-",
        r["scope"] or "-", told,
    ]  # fmt: skip


def opened(results: Results, picture: str) -> Html:
    """One picture's answer from its rows: what is known of it, and the bars of each method."""
    with results.at_once():
        rows = results.of_picture(str(picture)[:LONGEST]) if picture else []
        methods = results.methods() if rows else []
        offsets = results.offsets() if rows else {}
    if not rows:
        return note(f"There is no picture '{picture}' in these results." if picture else NO_PICTURE)
    first = rows[0]
    scope = VERDICTS.get(first["scope"], "")
    head = heading(first["picture"]) + text(caption_html(first["prompt"]), scope)
    if first["method"] is None:
        return Html(head + text(f"No scores. {first['reason']}"))
    found = {r["method"] for r in rows}
    by = {m: [r for r in rows if r["method"] == m] for m in methods if m in found}
    body = Html("".join(_method(own, offsets.get(m, {})) for m, own in by.items()))
    if first["scope"] == "out of scope":
        body = folded(sentences.ALL_THE_SAME, body, css="guda-out")
    hashes = f"SHA-256 of the file: {first['file_sha256']}. Its report: "
    command = code(f"guda results RESULTS --report {typed(first['picture'])} report.zip")
    return Html(head + body + note(Html(safe(hashes) + command)))


def typed(name: str) -> str:
    """A picture's name as a command line of this machine's system holds it. On Windows a name that cmd or PowerShell
    would read something into is left to the reader: PICTURE, as RESULTS is."""
    if not WINDOWS:
        return shlex.quote(name)
    return "PICTURE" if READ_IN_QUOTES.search(name) else f'"{name}"'


def _method(rows: Sequence[Row], offsets: Mapping[str, float]) -> Html:
    """The bars of one method's rows of a picture, and what is said of the first group."""
    a, group_set = answer_of(rows, offsets)
    body = Html(f'<h3 class="guda-method">{safe(a.method)}</h3>') + bars(a, group_set, a.method)
    lead = lead_said(a, group_set)
    return Html(body + note(lead)) if lead else Html(body)


def answer_of(rows: Sequence[Row], offsets: Mapping[str, float] = MappingProxyType({})) -> tuple[Attribution, GroupSet]:
    """One method's rows as an answer, and their groups. offsets: group id -> its offset, of that method."""
    scores = {r["group_id"]: GroupScore(r["score"], r["low"], r["high"], r["status"], r["reason"]) for r in rows}
    groups = {r["group_id"]: Group(r["group_id"], r["group_name"]) for r in rows}
    a = Attribution(
        rows[0]["method"],
        rows[0]["unit"],
        scores,
        separable=rows[0]["told_apart"],
        settings={"offset": dict(offsets)} if offsets else {},
    )
    second = next(iter(a.ranked()[1:]), None)
    return replace(a, runner_up=second if a.separable is not None else None), GroupSet("results", "Results", groups)


def connect(s: Screen, results: Results, tab: gr.Tab) -> None:
    """Wire the screen. Nothing here computes a score. Whoever opens the tab sees the table as it is then."""
    outputs = [s.start, s.where, s.rows, s.picture, s.back, s.on]

    def turned(to: int, order: str, *asked: Any) -> list[Any]:
        try:
            start, where, rows, names, count = page(results, asked_of(*asked), order, to)
        except Exception as e:
            return [0, note(explained(e)), "", gr.update(choices=[], value=None), *turns(0, 0)]
        return [start, where, rows, gr.update(choices=names, value=None), *turns(start, count)]

    def fresh(*asked: Any) -> list[Any]:
        return turned(0, *asked)

    def back(at: int, *asked: Any) -> list[Any]:
        return turned(at - ROWS, *asked)

    def on(at: int, *asked: Any) -> list[Any]:
        return turned(at + ROWS, *asked)

    def entered(at: int, order: str, picture: str | None, *asked: Any) -> list[Any]:
        try:
            with results.at_once():
                (groups, methods), head = _choices(results), _head(results)
                start, where, rows, names, count = page(results, asked_of(*asked), order, at)
                answer = opened(results, picture or "")
        except Exception as e:
            return [note(explained(e)), *[gr.skip()] * 9]
        shown = [gr.update(choices=c) for c in (groups, methods, names)]
        return [head, *shown[:2], start, where, rows, shown[2], *turns(start, count), answer]

    def show(picture: str | None) -> Html:
        try:
            return opened(results, picture or "")
        except Exception as e:
            return note(explained(e))

    queued: dict[str, Any] = {**QUICK, "queue": True, "concurrency_id": "results", "concurrency_limit": 2}
    read_anew = [s.head, s.asked[1], s.asked[2], *outputs, s.opened]
    for event in (
        tab.select(entered, [s.start, s.order, s.picture, *s.asked], read_anew, **queued),
        gr.on([c.change for c in (*s.asked, s.order)], fresh, [s.order, *s.asked], outputs, **queued),
        s.back.click(back, [s.start, s.order, *s.asked], outputs, **queued),
        s.on.click(on, [s.start, s.order, *s.asked], outputs, **queued),
    ):
        event.failure(lambda: note(words.NOT_STARTED), None, s.where, **QUICK)
    shown = s.picture.change(show, s.picture, s.opened, **queued)
    shown.failure(lambda: note(words.NOT_STARTED), None, s.opened, **QUICK)
