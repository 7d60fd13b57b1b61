"""Which press starts what. Everything that computes shares one place in one queue; the rest answers at once."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from guda_core.answers.markup import note, status_html, verdict_html
from guda_core.answers.verdict import WORKING_VERDICT, Verdict
from guda_core.data.images import read_file
from guda_core.data.prompts import MAX_PROMPT
from guda_core.data.written_prompts import written_prompt
from guda_core.errors import GudaError
from guda_core.service import EFFORTS, Service
from guda_core.ui import address, words
from guda_core.ui.after import After, connect_past
from guda_core.ui.answer import Answer
from guda_core.ui.blocks import LATEST, QUICK
from guda_core.ui.callbacks import Runs, Update
from guda_core.ui.examples import EXAMPLES, Example
from guda_core.ui.layout import Screen, effort_choices, first_caption
from guda_core.ui.past import Past
from guda_core.ui.uploads import uploaded

SHOW = (  # on a phone the answer stands far below the buttons; who comes by keyboard goes on from what was pressed
    "() => { window.gudaPressed = document.activeElement; "
    "if (innerWidth < 768) document.getElementById('guda-answer').scrollIntoView(); return []; }"
)
BACK = (  # a button that was switched off for a while has lost the focus
    "() => { setTimeout(() => { if (document.activeElement === document.body && window.gudaPressed) "
    "window.gudaPressed.focus({preventScroll: true}); }, 100); return []; }"
)
# The caption that was found in a file, what is said of it, nothing yet of what the model reads, and the same caption
# again, so that the next picture may replace it. What the visitor wrote stays, also if it was while the file was read.
TAKEN = "(caption, found, said, last) => caption && caption !== last ? [caption, '', '', ''] : [found, said, '', found]"
NOT_TAKEN = "(caption, last) => [caption === last ? '' : caption, '', '', '']"  # the file could not be read
# What was said of the caption that was taken from a file; nothing where the visitor wrote on while it was read.
STILL = "(caption, last, said) => [caption === last ? said : '']"
NOT_STARTED = Verdict("Not started", words.NOT_STARTED)
COMPUTE: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": 1}


def connect(demo: gr.Blocks, s: Screen, service: Service) -> list[Any]:
    """Wire every event of the first screen; gives the events that run, so that other screens can follow them."""
    runs = Runs(service, s)
    times = _connect_small(demo, s, service, runs)
    after = After(service, s, runs)
    options = [s.methods, s.effort]
    examples = [e for e in EXAMPLES if e.fits(service.group_set)]
    asked = [
        (s.generate.click, runs.generate, [s.prompt, s.seed, s.steps, s.guidance, *options], "page_generate"),
        (s.attribute.click, runs.attribute, [s.upload, s.caption, s.more_captions, *options], "page_attribute"),
        (s.again.click, runs.again, [s.answer, *options], "page_again"),
        *(
            (wanted.change, partial(runs.example, e), None, f"page_example_{i}")
            for i, (wanted, e) in enumerate(zip(s.wanted, examples, strict=True), 1)
        ),
    ]
    form = [s.object_name, s.style, s.prompt, s.seed, s.steps, s.guidance]
    started: list[Any] = []
    between = _between(s, runs)
    begin, end, failed, cancelled = between.begin, between.end, between.failed, between.cancelled
    for button, wanted, e in zip(s.examples, s.wanted, examples, strict=True):
        made_of = [e.object_name, e.style, e.prompt(service.group_set), e.seed, e.steps, e.guidance]
        fill = partial(_filled, [*form, s.made_of], [*made_of, (e.object_name, e.style)])
        button.click(fill, None, [*form, s.made_of], **QUICK)  # so that pressing "Generate" draws the example again
        known = _Known(after, e, begin, wanted)
        button.click(known, s.past, known.outputs(), js=SHOW, **QUICK)
    for event, run, inputs, name in asked:
        first = {} if name.startswith("page_example") else {"js": SHOW}  # an example's press did that already
        anew = run == runs.again  # it takes the answer that stands there, and empties the screen itself
        start, never, of = (begin, failed, [s.status, s.answer])
        if anew:
            start, never, of = (between.busy, between.not_again, [s.status])
        pressed = event(start.fn, None, start.outputs, **first, **QUICK)
        running = pressed.then(
            run, inputs, s.outputs(), api_name=name, api_visibility="undocumented", show_progress="minimal",
            show_progress_on=s.status, **COMPUTE,
        )  # fmt: skip
        freed = after.kept(running.then).then(end.fn, None, end.outputs, **QUICK)
        freed.then(None, None, None, js=BACK, **QUICK)
        after.kept(running.failure).then(never.fn, of, never.outputs, **QUICK)
        freed.then(*times, **LATEST)
        started.append(running)
    mapping = _connect_map(s, after, between)
    s.cancel.click(None, None, s.status, js=f"() => {json.dumps(status_html(words.CANCELLING))}", **QUICK)
    ended = [*started, mapping]  # the browser cancels after the call, so that only now no late answer can overwrite it
    stopped = s.cancel.click(lambda: None, None, None, cancels=ended, **QUICK)
    stopped.then(cancelled.fn, s.answer, cancelled.outputs, **QUICK)
    connect_past(after)
    return started


def _connect_map(s: Screen, after: After, between: _Between) -> Any:
    """Choosing a group makes its map, once; gives the event that does."""
    s.group.input(after.ask, [s.group, s.turn], s.map_wanted, **LATEST)
    begun = s.map_wanted.change(between.busy.fn, None, between.busy.outputs, **QUICK)
    mapping = begun.then(
        after.map, [s.answer, s.map_wanted], after.mapped(), api_name="page_map", api_visibility="undocumented",
        show_progress="minimal", show_progress_on=s.status, **COMPUTE,
    )  # fmt: skip
    after.kept(mapping.then).then(between.over.fn, None, between.over.outputs, **QUICK)
    after.kept(mapping.failure).then(between.unmapped.fn, s.status, between.unmapped.outputs, **QUICK)
    return mapping


def _filled(form: list[Any], made_of: list[Any]) -> Update:
    return dict(zip(form, made_of, strict=True))


class _Known:
    """What pressing an example does at once: it shows what was kept, else it asks for a place in the queue."""

    def __init__(self, after: After, example: Example, begin: _Small, wanted: gr.Textbox) -> None:
        self.after, self.example, self.begin, self.wanted = after, example, begin, wanted

    def outputs(self) -> list[Any]:
        s = self.after.screen
        return list(dict.fromkeys([*s.outputs(), *self.begin.outputs, self.wanted, s.past, s.past_rows]))

    def __call__(self, past: tuple[Past, ...] | None) -> Update:
        s = self.after.screen
        cleared = dict(zip(self.begin.outputs, self.begin.fn(), strict=True))
        kept = self.after.runs.kept(self.example, wait=False)  # another press reads it: in the queue it is known
        if kept is None:
            return {**cleared, self.wanted: secrets.token_hex(8)}
        buttons = {k: gr.skip() for k in self.begin.outputs if isinstance(k, gr.Button | gr.Dropdown)}
        listed = dict(zip((s.past, s.past_rows), self.after.keep(kept[s.answer], past), strict=True))
        return {**cleared, **buttons, **kept, **listed}


class _Small(NamedTuple):
    """A function that computes nothing, and the components it changes."""

    fn: Callable[..., Any]
    outputs: list[Any]


class _Between(NamedTuple):
    """What the screen does when a run is asked for, is over, has failed, and is cancelled; when the same picture is to
    be scored again or a map is asked for, and these could not be begun; and when a map is over."""

    begin: _Small
    end: _Small
    failed: _Small
    cancelled: _Small
    busy: _Small
    not_again: _Small
    over: _Small
    unmapped: _Small


def _between(s: Screen, runs: Runs) -> _Between:
    buttons = [s.again, s.generate, s.attribute, *s.examples, s.group, s.cancel]

    def usable(*, idle: bool, again: dict[str, Any] | None = None, **group: Any) -> list[Any]:
        """again, group: more that is changed of the button that scores again, and of the drop-down of maps."""
        first = [gr.update(interactive=idle, **(again or {})), *[gr.update(interactive=idle)] * (len(buttons) - 3)]
        return [*first, gr.update(interactive=idle, **group), gr.update(interactive=not idle)]

    def begin() -> list[Any]:
        said = [None, verdict_html(WORKING_VERDICT), status_html(words.WAITING)]
        return [*usable(idle=False, again={"visible": False}), *said, *[""] * len(s.empty()), "", secrets.token_hex(4)]

    def end() -> list[Any]:
        return usable(idle=True)

    def failed(status: str, answer: Answer | None) -> list[Any]:
        never = status == status_html(words.WAITING)  # the queue was full, or an input was refused by gradio itself
        said = [verdict_html(NOT_STARTED), status_html("")] if never else [gr.skip(), gr.skip()]
        return [*usable(idle=True, again={"visible": answer is not None}), *said]

    def cancelled(answer: Answer | None) -> list[Any]:
        said = status_html(words.CANCELLED if answer is not None and answer.scored() else "")
        return [runs.cancelled(answer), said, gr.update(visible=answer is not None)]

    def not_again(status: str) -> list[Any]:
        never = status == status_html(words.WAITING)
        return [*usable(idle=True), status_html(words.NOT_STARTED) if never else gr.skip()]

    def over() -> list[Any]:
        return [*usable(idle=True, value=None), secrets.token_hex(4)]

    def unmapped(status: str) -> list[Any]:
        never = status == status_html(words.WAITING)
        return [*over(), *([status_html(""), note(words.NOT_STARTED)] if never else [gr.skip(), gr.skip()])]

    said = [s.says, s.status]
    return _Between(
        _Small(begin, [*buttons, s.answer, *said, *s.empty(), s.mapped, s.turn]),
        _Small(end, buttons),
        _Small(failed, [*buttons, *said]),
        _Small(cancelled, [*said, s.again]),
        _Small(lambda: [*usable(idle=False), status_html(words.WAITING), ""], [*buttons, s.status, s.mapped]),
        _Small(not_again, [*buttons, s.status]),
        _Small(over, [*buttons, s.turn]),
        _Small(unmapped, [*buttons, s.turn, s.status, s.mapped]),
    )


def offer(path: str | None, caption: str, last: str) -> list[Any]:
    """The caption that a picture's file names, where the visitor has written none, and what is said of it: for
    `TAKEN`."""
    if caption and caption != last:
        return ["", ""]
    try:
        found = written_prompt(read_file(uploaded(path))) if path else None
    except GudaError:  # told when the picture is to be scored
        found = None
    if found is None:
        return ["", ""]
    said = words.FOUND_CAPTION.format(program=found.program)
    return [found.prompt, note(said, *([words.CUT_CAPTION] if found.cut else []))]


def not_read(service: Service, prompt: str) -> str:
    """What the model cannot read of a caption that was taken from a file; "" when it reads all, or there is none."""
    said = service.unread(prompt) if 0 < len(prompt or "") <= MAX_PROMPT else ()  # a caller may send any length
    return note(*said) if said else ""


def _connect_small(demo: gr.Blocks, s: Screen, service: Service, runs: Runs) -> tuple[Any, ...]:
    """Everything that computes nothing: the prompt, the buttons of a tab, the expected times. Gives what tells these
    anew: function, inputs and output."""
    uploads = gr.State(False)  # whether the tab for uploads is open

    def fill(object_name: str, style: str, made_of: tuple[str, str] | None) -> list[Any]:
        """A drop-down that was only passed tells its value, too: then the prompt stays as it is."""
        if made_of is not None and (object_name, style) == tuple(made_of):
            return [gr.skip(), gr.skip()]
        return [first_caption(service.group_set, object_name, style), (object_name, style)]

    def times(methods: list[str], more_captions: bool, steps: float, uploads: bool) -> Any:
        n = 0 if uploads else int(steps)
        more = {"scope": True, "captions": more_captions} if uploads else {"steps": n}
        known = {e: runs.plan(methods, e, n, **more).expected() for e in EFFORTS} if methods else {}
        return gr.update(choices=effort_choices(known))

    if service.group_set.train_objects:
        chosen = [s.object_name, s.style]
        gr.on([c.input for c in chosen], fill, [*chosen, s.made_of], [s.prompt, s.made_of], **LATEST)
    form = [s.prompt, s.seed, s.steps, s.guidance, s.effort, s.methods, s.more_captions]  # `address.FIELDS`

    def filled(request: gr.Request) -> list[Any]:
        query, offered = dict(request.query_params), service.methods()
        unknown = address.left_out(query, offered)
        return [*address.filled(query, offered), status_html(unknown) if unknown else gr.skip()]

    demo.load(filled, None, [*form, s.status], **QUICK)
    for button in (s.generate, s.attribute):
        button.click(None, form, None, js=address.WRITE, **QUICK)
    last = gr.Textbox(visible="hidden", container=False)  # the caption that was taken from a file
    read: dict[str, Any] = {**QUICK, "queue": True, "concurrency_limit": 2}  # a stranger's file is read
    found = [gr.Textbox(visible="hidden", container=False), gr.Textbox(visible="hidden", container=False)]
    changed = [s.caption, s.offered, s.not_read, last]
    offered = s.upload.change(offer, [s.upload, s.caption, last], found, **read)
    offered.success(None, [s.caption, *found, last], changed, js=TAKEN, **QUICK)
    offered.failure(None, [s.caption, last], changed, js=NOT_TAKEN, **QUICK)
    # A tokenizer changes while it reads, so that nothing else may compute just then.
    reading = last.change(partial(not_read, service), last, s.not_read, **{**QUICK, **COMPUTE, "queue": True})
    reading.failure(lambda: "", None, s.not_read, **QUICK)
    reading.then(None, [s.caption, last, s.not_read], s.not_read, js=STILL, **QUICK)
    s.caption.input(None, None, [s.offered, s.not_read], js="() => ['', '']", **QUICK)

    def turned(event: gr.SelectData) -> list[Any]:
        """The button of the tab that is open."""
        return [*(gr.update(visible=event.index == i) for i in range(len(s.tabs))), event.index == 1]

    gr.on([tab.select for tab in s.tabs], turned, None, [s.generate, s.attribute, uploads], **LATEST)
    told = times, [s.methods, s.more_captions, s.steps, uploads], s.effort
    changes = [demo.load, *(c.change for c in (s.methods, s.more_captions, s.steps, uploads))]
    gr.on(changes, *told, **LATEST)
    return told
