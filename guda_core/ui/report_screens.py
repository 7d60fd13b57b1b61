"""The report of the last answer for download; a report that someone brings, shown, replayed, set beside another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from guda_core.answers import sentences
from guda_core.answers.markup import Html, code, folded, heading, note, says_html, status_html, table, text, unasked
from guda_core.errors import ReportError
from guda_core.records import GroupScore, MethodInfo
from guda_core.reports.findings import AROUND, SCOPE, Verdict, differences
from guda_core.reports.opened import Told, tell
from guda_core.reports.page import answer_html
from guda_core.reports.read import read_report
from guda_core.reports.replay import replay
from guda_core.reports.restore import attributions, pixels
from guda_core.reports.restore import shown as restored
from guda_core.reports.two_reports import away, compare
from guda_core.service import Service
from guda_core.ui import words
from guda_core.ui.answer import Answer
from guda_core.ui.blocks import QUICK, block
from guda_core.ui.callbacks import explained, refusal
from guda_core.ui.connect import COMPUTE
from guda_core.ui.uploads import offered, only_keep_the_path, uploaded

ABOUT = (
    "A report is one zip. It holds the scores with their intervals, the values behind GUDA's, the picture, hashes, "
    "settings, versions and limits. Who gets it can see the picture and its caption. Where and when an "
    "uploaded picture was taken is in it only if you tick the box. Anyone can compute it again, here or with"
)
MOST_HTML = 8_000_000  # characters of what is shown of a report; gradio keeps it until the page has fetched it
TOO_LONG = "This report is too large to be shown here. `guda replay` reads it."
SAVE = """(file) => {
    if (!file) return;
    const link = document.createElement("a");
    link.href = file.url;
    link.download = file.orig_name || "";
    document.body.append(link);
    link.click();
    link.remove();
}"""  # runs in the browser with the file just made: it does not wait for the page to show the button


def report_name(answer: Answer) -> str:
    """The name of a report's file: its picture's hash tells reports apart."""
    return f"guda-report-{answer.query.image_hash[:12]}.zip"


def made(answer: Answer | None, service: Service, *, with_file: bool = False) -> str:
    """Write the report of an answer and give its path. Raises GudaError."""
    if answer is None:
        raise ReportError(words.NO_ANSWER)
    return offered(report_name(answer), answer.report(service, with_file=with_file))


def told(verdict: Verdict) -> Html:
    """What a replay found: the sentence, and a table of each kind of difference."""
    kinds = (
        ("What the answer is computed from", verdict.inputs),
        ("The answer", verdict.scores),
        (SCOPE, verdict.scope),
        (AROUND, verdict.environment),
    )
    parts: list[str] = [says_html(words.REPLAYED[verdict.outcome])]
    for title, changes in kinds:
        if changes:
            rows = [(said,) for said in differences(changes)]
            parts.append(heading(title) + table(title, ("What differs",), rows))
    return Html("".join(parts))


@dataclass(frozen=True)
class Opened:
    """A report that was read, and how it is shown."""

    told: Told
    html: Html


def opened(path: Path, known: Mapping[str, MethodInfo], title: str = "What the report says") -> Opened:
    """Read a report and show what it says. Raises ReportError."""
    report = read_report(path)
    told = tell(report.record, attributions(report), known, restored(report))
    about = f"{told.record['model']['name']}, {sentences.moment(told.record['date'])}"
    return Opened(told, _bounded(heading(title) + note(about) + answer_html(told, pixels(report))))


def _bounded(shown: str) -> Html:
    if len(shown) > MOST_HTML:
        raise ReportError(TOO_LONG)
    return Html(shown)


def comparison(a: Told, b: Told) -> Html:
    """How two reports differ: sentences, and a table for each method that both have."""
    found = compare(a, b)
    tables = ""
    for m, rows in found.methods.items():
        unit, name = found.units.get(m, ""), a.methods[m].name
        cells = [
            (r.name, r.rank_a or "-", r.rank_b or "-", _score(r.score_a, unit), _score(r.score_b, unit),
             "-" if r.difference is None else sentences.score(GroupScore(r.difference, r.low, r.high), unit),
             sentences.interval(GroupScore(r.difference, r.low, r.high), unit) or "-")
            for r in rows
        ]  # fmt: skip
        head = ("Group", "Rank: first", "second", f"Score ({unit or 'two units'}): first", "second", "Difference",
                "95% interval")  # fmt: skip
        body = table(f"Both reports by {name}", head, cells, numbers=".nnnnnn")
        tables += folded(name, body, open_=m == next(iter(found.methods)))
    said = heading("The two reports compared") + text(*found.said)
    return _bounded(said + (unasked(Html(tables), away(a, b)) if tables else ""))


def _score(value: float | None, unit: str) -> str:
    return "-" if value is None else sentences.number(value, unit)


@dataclass(frozen=True)
class Reports:
    """The parts of this section."""

    download: gr.Button
    with_file: gr.Checkbox
    file: gr.DownloadButton
    said: gr.HTML
    upload: gr.File
    second: gr.File
    replay: gr.Button
    cancel: gr.Button
    status: gr.HTML
    result: gr.HTML
    opened: gr.HTML
    beside: gr.HTML


def draw() -> Reports:
    """Draw the section inside the current tab."""
    block(heading("Report") + note(Html(f"{ABOUT} {code('python -m guda_core replay')}.")))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            download = gr.Button("Download report", variant="primary")
            with_file = gr.Checkbox(label=words.WITH_FILE, info=words.WITH_FILE_INFO, container=False)
            file = gr.DownloadButton("Save the report", elem_id="guda-report-file", visible=False, size="sm")
            said = block()
        with gr.Column(min_width=280):
            with gr.Row():
                upload = gr.File(label="A report's zip", file_count="single", type="filepath", height=140)
                second = gr.File(label="A second one, to compare", file_count="single", type="filepath", height=140)
            only_keep_the_path(upload)
            only_keep_the_path(second)
            with gr.Row():
                again = gr.Button("Replay this report", scale=3, min_width=150)
                cancel = gr.Button("Stop", interactive=False, scale=1, min_width=80)
    status, result = block(status_html(""), elem_classes="guda-status"), block()
    with gr.Row(equal_height=False, elem_classes="guda-pair"):
        with gr.Column(min_width=320, elem_classes="guda-maybe"):
            opened = block(elem_classes="guda-opened")
        with gr.Column(min_width=320, elem_classes="guda-maybe"):
            beside = block(elem_classes="guda-opened")
    return Reports(download, with_file, file, said, upload, second, again, cancel, status, result, opened, beside)


def connect(r: Reports, service: Service, answer: gr.State, turn: gr.Textbox, about: Sequence[gr.HTML]) -> None:
    """Wire the section. turn: another one with each answer and map; about: what changes on the screen with the answer:
    a report that is ready is another one's then."""

    def write(a: Answer | None, with_file: bool, of: str) -> list[Any]:
        try:
            path = made(a, service, with_file=with_file)
            none = [words.NO_FILE] if with_file and a is not None and a.query.file_hash is None else []
            return [gr.update(value=path, visible=True), note("The report is ready.", *none), of]
        except Exception as e:
            return [gr.update(visible=False), note(f"No report. {explained(e)}"), of]

    def shown(path: str | None, other: str | None) -> list[Any]:
        """The report, the second one beside it, and how they differ; a sentence in place of one that is refused."""
        known, told, out = service.methods(), [], []
        for given, which in ((path, "First"), (other, "Second")):
            title = [f"{which} report: {Path(given).name}"] if given and path and other else []
            try:
                told.append(opened(uploaded(given), known, *title) if given else None)
                out.append(told[-1].html if told[-1] is not None else "")
            except Exception as e:
                told.append(None)
                out.append(text(f"Not opened. {explained(e)}"))
        first, second = told
        try:
            differ = comparison(first.told, second.told) if first is not None and second is not None else ""
        except ReportError as e:
            differ = text(f"Not compared. {explained(e)}")
        return [*out, differ or gr.skip()]  # a replay may have begun meanwhile

    def run(path: str | None) -> Iterator[list[Any]]:
        try:
            report = read_report(uploaded(path, missing=ReportError(words.NO_REPORT)))
            for item in replay(report, service):
                if isinstance(item, Verdict):
                    yield [status_html(words.DONE), told(item)]
                else:
                    what = f"Computing again, {item.what}: {item.progress:.0%}"
                    yield [status_html(what, item.progress), gr.skip()]
        except Exception as e:
            sentence = explained(e)
            yield [status_html(""), text(f"Not replayed. {sentence}")]
            raise refusal(sentence) from None

    def usable(*, idle: bool) -> list[Any]:
        """While one report is replayed, no other takes its place."""
        able = gr.update(interactive=idle)
        return [able, able, able, gr.update(interactive=not idle)]

    def failed(status: str) -> list[Any]:
        never = status == status_html(words.WAITING)  # the queue was full, or an input was refused by gradio itself
        return [*usable(idle=True), *([status_html(""), says_html(words.NOT_STARTED)] if never else [gr.skip()] * 2)]

    queued: dict[str, Any] = {**QUICK, "queue": True, "concurrency_limit": 2}
    of = gr.State("")  # the turn that it was written in
    written = r.download.click(write, [answer, r.with_file, turn], [r.file, r.said, of], **queued)
    saved = written.success(None, r.file, None, js=SAVE, **QUICK)
    written.failure(lambda: note(f"No report. {words.NOT_STARTED}"), None, r.said, **QUICK)  # the queue was full
    gone = [gr.update(visible=False), ""]
    gr.on([part.change for part in (turn, *about)], lambda: gone, None, [r.file, r.said], **QUICK)
    saved.then(lambda then, now: [gr.skip()] * 2 if then == now else gone, [of, turn], [r.file, r.said], **QUICK)
    for file in (r.upload, r.second):
        file.change(lambda: ["", status_html("")], None, [r.result, r.status], **QUICK)
        read = file.change(shown, [r.upload, r.second], [r.opened, r.beside, r.result], **queued)
        read.failure(lambda: says_html(f"Not opened. {words.NOT_STARTED}"), None, r.result, **QUICK)
    buttons = [r.replay, r.upload, r.second, r.cancel]
    begun = r.replay.click(
        lambda: [*usable(idle=False), status_html(words.WAITING), ""], None, [*buttons, r.status, r.result], **QUICK
    )
    running = begun.then(
        run, r.upload, [r.status, r.result], api_name="page_replay", api_visibility="undocumented",
        show_progress="minimal", show_progress_on=r.status, **COMPUTE,
    )  # fmt: skip
    running.then(lambda: usable(idle=True), None, buttons, **QUICK)
    running.failure(failed, r.status, [*buttons, r.status, r.result], **QUICK)
    r.cancel.click(None, None, r.status, js=f"() => {json.dumps(status_html(words.CANCELLING))}", **QUICK)
    stopped = r.cancel.click(lambda: None, None, None, cancels=[running], **QUICK)
    stopped.then(lambda: [*usable(idle=True), status_html(words.CANCELLED)], None, [*buttons, r.status], **QUICK)
