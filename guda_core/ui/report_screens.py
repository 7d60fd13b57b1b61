"""The report of the last answer for download, and the replay of a report that someone brings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from guda_core.answers.markup import Html, code, heading, note, says_html, status_html, table
from guda_core.errors import ReportError
from guda_core.reports.read import read_report
from guda_core.reports.replay import Change, Verdict, replay
from guda_core.service import Service
from guda_core.ui import words
from guda_core.ui.answer import Answer
from guda_core.ui.blocks import block
from guda_core.ui.callbacks import explained, refusal
from guda_core.ui.connect import COMPUTE, QUICK
from guda_core.ui.uploads import offered, only_keep_the_path, uploaded

ABOUT = (
    "A report is one zip. It holds the scores with their intervals, all values behind them, the picture, hashes, "
    "settings, versions and limits. Anyone can compute it again, here or with"
)
MOST = 200  # changes shown
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


def made(answer: Answer | None, service: Service) -> str:
    """Write the report of an answer and give its path. Raises GudaError."""
    if answer is None:
        raise ReportError(words.NO_ANSWER)
    return offered(report_name(answer), answer.report(service))


def told(verdict: Verdict) -> Html:
    """What a replay found: the sentence, and a table of each kind of difference."""
    kinds = (
        ("What the answer is computed from", verdict.inputs),
        ("The answer", verdict.scores),
        ("Versions and hardware (shown, not judged)", verdict.environment),
    )
    parts: list[str] = [says_html(words.REPLAYED[verdict.outcome])]
    for title, changes in kinds:
        if changes:
            parts.append(heading(title) + _changes(title, changes))
    return Html("".join(parts))


def _changes(title: str, changes: tuple[Change, ...]) -> str:
    rows = [(c.sentence(),) for c in changes[:MOST]]
    more = note(f"And {len(changes) - MOST} more.") if len(changes) > MOST else ""
    return table(title, ("What differs",), rows) + more


@dataclass(frozen=True)
class Reports:
    """The parts of this section."""

    download: gr.Button
    file: gr.DownloadButton
    said: gr.HTML
    upload: gr.File
    replay: gr.Button
    cancel: gr.Button
    status: gr.HTML
    result: gr.HTML


def draw() -> Reports:
    """Draw the section inside the current tab."""
    block(heading("Report") + note(Html(f"{ABOUT} {code('python -m guda_core replay')}.")))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            download = gr.Button("Download report", variant="primary")
            file = gr.DownloadButton("Save the report", elem_id="guda-report-file", visible=False, size="sm")
            said = block()
        with gr.Column(min_width=280):
            upload = gr.File(label="A report's zip", file_count="single", type="filepath", height=120)
            only_keep_the_path(upload)
            with gr.Row():
                again = gr.Button("Replay this report", scale=3, min_width=150)
                cancel = gr.Button("Stop", interactive=False, scale=1, min_width=80)
    status, result = block(status_html(""), elem_classes="guda-status"), block()
    return Reports(download, file, said, upload, again, cancel, status, result)


def connect(r: Reports, service: Service, answer: gr.State) -> None:
    """Wire the section."""

    def write(a: Answer | None) -> list[Any]:
        try:
            return [gr.update(value=made(a, service), visible=True), note("The report is ready.")]
        except Exception as e:
            return [gr.update(visible=False), note(f"No report. {explained(e)}")]

    def run(path: str | None) -> Iterator[list[Any]]:
        try:
            report = read_report(uploaded(path, missing=ReportError(words.NO_REPORT)))
            known = service.methods()
            for item in replay(report, service):
                if isinstance(item, Verdict):
                    yield [status_html(words.DONE), told(item)]
                else:
                    what = f"Computing again, {known[item.method].name}: {item.progress:.0%}"
                    yield [status_html(what, item.progress), gr.skip()]
        except Exception as e:
            sentence = explained(e)
            yield [status_html(""), says_html(f"Not replayed. {sentence}")]
            raise refusal(sentence) from None

    def usable(*, idle: bool) -> list[Any]:
        return [gr.update(interactive=idle), gr.update(interactive=not idle)]

    written = r.download.click(write, answer, [r.file, r.said], **{**QUICK, "queue": True}, concurrency_limit=2)
    written.success(None, r.file, None, js=SAVE, **QUICK)
    buttons = [r.replay, r.cancel]
    begun = r.replay.click(
        lambda: [*usable(idle=False), status_html(words.WAITING), ""], None, [*buttons, r.status, r.result], **QUICK
    )
    running = begun.then(
        run, r.upload, [r.status, r.result], api_name="page_replay", api_visibility="undocumented",
        show_progress="minimal", show_progress_on=r.status, **COMPUTE,
    )  # fmt: skip
    running.then(lambda: usable(idle=True), None, buttons, **QUICK)
    running.failure(lambda: usable(idle=True), None, buttons, **QUICK)
    stopped = r.cancel.click(lambda: None, None, None, cancels=[running], **QUICK)
    stopped.then(lambda: [*usable(idle=True), status_html(words.CANCELLED)], None, [*buttons, r.status], **QUICK)
