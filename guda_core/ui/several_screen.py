"""The screen for several pictures: files or a folder in, a table that fills, each row opens its whole answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from guda_core.answers.markup import heading, note, says_html, status_html, text
from guda_core.errors import ReportError
from guda_core.service import Service
from guda_core.ui import words
from guda_core.ui.blocks import BUSY, LATEST, OPENED, QUICK, block, rows_block
from guda_core.ui.callbacks import PAUSE_S, Runs, explained, refusal
from guda_core.ui.connect import COMPUTE
from guda_core.ui.layout import SESSION, Screen, effort_choices
from guda_core.ui.report_screens import SAVE
from guda_core.ui.several import ALL_REPORTS, TABLE, Several, begun, csv_of, expected, most, one, reports_of, rows_html
from guda_core.ui.uploads import offered, only_keep_the_path

TAB = "Several pictures"


@dataclass(frozen=True)
class Pictures:
    """The parts of this screen. wanted: out of sight; it changes when the next picture is to be scored. halted: that
    the visitor pressed Stop; work that is being cancelled never writes it."""

    files: gr.File
    folder: gr.File
    effort: gr.Radio
    start: gr.Button
    cancel: gr.Button
    status: gr.HTML
    said: gr.HTML
    rows: gr.HTML
    downloads: tuple[gr.Button, gr.Button]
    file: gr.DownloadButton
    several: gr.State
    wanted: gr.Textbox
    halted: gr.State


def draw() -> Pictures:
    """Draw the screen inside the current tab. Raises OptionError: the setting for the number of pictures is wrong."""
    block(heading(TAB) + text(words.SEVERAL.format(most=most())))
    shared: dict[str, Any] = {"type": "filepath", "height": 140, "elem_classes": "guda-files"}
    with gr.Row():
        files = gr.File(label="Pictures", file_count="multiple", **shared)
        folder = gr.File(label="Or a folder of pictures", file_count="directory", **shared)
    for part in (files, folder):
        only_keep_the_path(part)
    block(note(f"{words.LIMITS} {words.PRIVACY}"), elem_classes="guda-small")
    effort = gr.Radio(effort_choices(), value="quick", label="Effort: more of it, narrower intervals")
    with gr.Row():
        start = gr.Button("Attribute all", variant="primary", min_width=150, scale=3)
        cancel = gr.Button("Stop", interactive=False, min_width=90, scale=1)
    status, said = block(status_html(""), elem_classes="guda-status"), block(elem_classes="guda-maybe guda-told-here")
    rows = rows_block()
    with gr.Row():
        table = gr.Button("Download the table (CSV)", size="sm", min_width=150)
        zipped = gr.Button("Download all reports (zip)", size="sm", min_width=150)
        file = gr.DownloadButton("Save the file", visible=False, size="sm")
    wanted = gr.Textbox(visible="hidden", container=False)
    state, halted = gr.State(None, time_to_live=SESSION), gr.State(False, time_to_live=SESSION)
    shown = (files, folder, effort, start, cancel, status, said, rows, (table, zipped), file)
    return Pictures(*shown, state, wanted, halted)


def status_of(several: Several, progress: float, left: float) -> str:
    """The line and the bar: which picture, and how long all of them will take."""
    if not several.left:
        return status_html(words.DONE)
    n, many = len(several.items), len(several.files)
    return status_html(f"Picture {n + 1} of {many}, {words.seconds(left)} left", (n + progress) / many)


class _Work:
    """What the buttons do, for one service."""

    def __init__(self, p: Pictures, service: Service) -> None:
        self.p, self.service = p, service

    def usable(self, *, idle: bool) -> dict[Any, Any]:
        """Pictures are scored, or reports made, and one line tells how far it is: one after the other."""
        able, stoppable = gr.update(interactive=idle), gr.update(interactive=not idle)
        return {self.p.start: able, self.p.downloads[1]: able, self.p.cancel: stoppable}

    def packing(self) -> dict[Any, Any]:
        off = {k: gr.update(interactive=False) for k in self.usable(idle=False)}
        return {self.p.said: "", self.p.status: status_html(words.WAITING), **off}

    def begin(self, files: list[str] | None, folder: list[str] | None, effort: str, before: Any) -> dict[Any, Any]:
        p = self.p
        try:
            several = begun(self.service, [*(files or []), *(folder or [])], effort, before)
        except Exception as e:
            return {p.said: says_html(f"Not started. {explained(e)}"), p.status: status_html("")}
        begin = {p.several: several, p.wanted: secrets.token_hex(8), p.rows: rows_html(self.service, several)}
        begin |= {p.file: gr.update(visible=False)}  # it holds the rows of before
        return {**begin, p.halted: False, p.said: "", p.status: status_html(words.WAITING), **self.usable(idle=False)}

    def run(self, several: Several | None, halted: bool) -> Iterator[dict[Any, Any]]:
        p = self.p
        if several is None or halted or not several.left:
            yield {p.several: several}
            return
        began, told = time.monotonic(), -PAUSE_S
        each = expected(self.service, several)
        for known, progress in one(self.service, several):
            now = time.monotonic()
            if progress < 1 and now - told < PAUSE_S:
                continue
            told, spent = now, now - began
            each = spent / progress if progress > 0.2 else each
            left = max(each - spent, 0.0) * (progress < 1) + each * (known.left - (progress < 1))
            new = {} if known is several else {p.several: known, p.rows: rows_html(self.service, known)}
            yield {**new, p.status: status_of(known, progress if known is several else 0.0, left)}

    def on(self, several: Several | None, halted: bool) -> dict[Any, Any]:
        """After a picture: ask for the next, or be done."""
        if several is not None and several.left and not halted:
            return {self.p.wanted: secrets.token_hex(8)}
        return self.usable(idle=True)

    def failed(self, several: Several | None, halted: bool) -> dict[Any, Any]:
        """No place in the queue, or cancelled: gradio tells both in the same way."""
        if halted:
            return self.stopped(several)
        said = says_html(f"Stopped. {words.NOT_STARTED} {words.GO_ON}")
        return {self.p.said: said, self.p.status: status_html(""), **self.usable(idle=True)}

    def stopped(self, several: Several | None) -> dict[Any, Any]:
        on = several is None or several.left  # pressed when the last picture was done, there is nothing to go on with
        said = status_html(f"{words.STOPPED} {words.GO_ON}" if on else words.DONE)
        return {self.p.said: "", self.p.status: said, **self.usable(idle=True)}

    def table(self, several: Several | None) -> dict[Any, Any]:
        try:
            if several is None or not several.items:
                raise ReportError(words.NO_ANSWERS)
            path = offered(TABLE, csv_of(self.service, several))
        except Exception as e:
            return {self.p.file: gr.update(visible=False), self.p.said: says_html(f"No table. {explained(e)}")}
        return {self.p.file: gr.update(value=path, visible=True), self.p.said: ""}

    def reports(self, several: Several | None) -> Iterator[dict[Any, Any]]:
        try:
            for made in reports_of(self.service, several or Several()):
                if isinstance(made, bytes):
                    file = gr.update(value=offered(ALL_REPORTS, made), visible=True)
                    told = {self.p.status: status_html(words.DONE), self.p.said: ""}
                    yield {self.p.file: file, **told, **self.usable(idle=True)}
                else:
                    yield {self.p.status: status_html(words.MAKING_REPORTS, made)}
        except Exception as e:
            sentence = explained(e)
            said = {self.p.said: says_html(f"No reports. {sentence}"), self.p.status: status_html("")}
            yield {self.p.file: gr.update(visible=False), **said, **self.usable(idle=True)}
            raise refusal(sentence) from None

    def not_packed(self, status: str) -> dict[Any, Any]:
        """What stopped the reports is told already, but for a queue that was full: they were never begun."""
        if status != status_html(words.WAITING):
            return {self.p.said: gr.skip()}
        said = says_html(f"No reports. {words.NOT_STARTED}")
        return {self.p.said: said, self.p.status: status_html(""), **self.usable(idle=True)}


def connect(p: Pictures, service: Service, s: Screen, tabs: gr.Tabs) -> None:
    """Wire the screen; opening a row fills the first screen and shows it. tabs: of the page; the first has the id 0."""
    work, runs = _Work(p, service), Runs(service, s)
    (table, zipped), buttons = p.downloads, [p.start, p.cancel, p.downloads[1]]
    hidden: dict[str, Any] = {"api_visibility": "undocumented", "show_progress": "hidden"}
    p.start.click(
        work.begin, [p.files, p.folder, p.effort, p.several],
        [p.several, p.wanted, p.halted, p.rows, p.said, p.status, p.file, *buttons], **QUICK,
    )  # fmt: skip
    running = p.wanted.change(
        work.run, [p.several, p.halted], [p.several, p.rows, p.status], api_name="page_several", **hidden, **COMPUTE
    )
    running.success(work.on, [p.several, p.halted], [p.wanted, *buttons], **QUICK)
    running.failure(work.failed, [p.several, p.halted], [p.said, p.status, *buttons], **QUICK)
    # The browser cancels after the call: `failed` knows already that it was the visitor.
    stopped = p.cancel.click(lambda: True, None, p.halted, cancels=[running], **QUICK)
    stopped.then(work.stopped, p.several, [p.said, p.status, *buttons], **QUICK)
    written = table.click(work.table, p.several, [p.file, p.said], **QUICK)
    written.success(None, p.file, None, js=SAVE, **QUICK)
    queued: dict[str, Any] = {**QUICK, "queue": True, "concurrency_limit": 1}
    asked = zipped.click(work.packing, None, [p.said, p.status, *buttons], **QUICK)
    packed = asked.then(work.reports, p.several, [p.file, p.said, p.status, *buttons], **queued)
    packed.failure(work.not_packed, p.status, [p.said, p.status, *buttons], **QUICK)
    packed.success(None, p.file, None, js=SAVE, **QUICK)

    def opened(event: gr.EventData, several: Several | None) -> dict[Any, Any]:
        items = several.items if several is not None else ()
        row = event._data.get("row") if isinstance(event._data, dict) else None
        if row == BUSY:
            return {p.said: says_html(words.FIRST_BUSY)}
        answer = items[row].answer if isinstance(row, int) and 0 <= row < len(items) else None
        if answer is None:
            return {p.said: says_html(words.PICTURE_GONE)}
        return {**runs.restored(answer), s.mapped: "", s.group: None, tabs: gr.Tabs(selected=0), p.said: ""}

    shown = p.rows.click(opened, p.several, [*s.outputs(), s.mapped, s.group, tabs, p.said], **LATEST)
    shown.then(None, None, None, js=OPENED, **QUICK)
