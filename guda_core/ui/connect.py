"""Which press starts what. Everything that computes shares one place in one queue; the rest answers at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from guda_core.service import EFFORTS, Service, main_method
from guda_core.ui import words
from guda_core.ui.callbacks import Runs
from guda_core.ui.examples import EXAMPLES
from guda_core.ui.layout import Screen, effort_choices, first_caption
from guda_core.ui.markup import says_html, status_html

QUICK: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
SHOW = (  # on a phone the answer stands far below the buttons
    "() => { if (innerWidth < 768) document.getElementById('guda-answer').scrollIntoView(); return []; }"
)
COMPUTE: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": 1}


def connect(demo: gr.Blocks, s: Screen, service: Service) -> list[Any]:
    """Wire every event of the first screen; gives the events that run, so that other screens can follow them."""
    _connect_small(demo, s, service)
    runs = Runs(service, s)
    options = [s.methods, s.effort]
    examples = [e for e in EXAMPLES if e.fits(service.group_set)]
    asked = [
        (s.generate, runs.generate, [s.prompt, s.seed, s.steps, s.guidance, *options], "page_generate"),
        (s.attribute, runs.attribute, [s.upload, s.caption, s.more_captions, *options], "page_attribute"),
        (s.again, runs.again, [s.answer, *options], "page_again"),
        *(
            (button, partial(runs.example, e), None, f"page_example_{i}")
            for i, (button, e) in enumerate(zip(s.examples, examples, strict=True), 1)
        ),
    ]
    form = [s.object_name, s.style, s.prompt, s.seed, s.steps, s.guidance]
    for button, e in zip(s.examples, examples, strict=True):  # so that pressing "Generate" draws the example again
        made_of = [e.object_name, e.style, e.prompt(service.group_set), e.seed, e.steps, e.guidance]
        button.click(lambda made_of=made_of: made_of, None, form, **QUICK)
    started = []
    begin, end, failed, cancelled = _between(s)
    for button, run, inputs, name in asked:
        pressed = button.click(begin.fn, None, begin.outputs, js=SHOW, **QUICK)
        running = pressed.then(
            run, inputs, s.outputs(), api_name=name, api_visibility="undocumented", show_progress="minimal",
            show_progress_on=s.status, **COMPUTE,
        )  # fmt: skip
        running.then(end.fn, None, end.outputs, **QUICK)
        running.failure(failed.fn, s.status, failed.outputs, **QUICK)
        started.append(running)
    s.cancel.click(None, None, s.status, js=f"() => {json.dumps(status_html(words.CANCELLING))}", **QUICK)
    stopped = s.cancel.click(lambda: None, None, None, cancels=started, **QUICK)  # the browser cancels after the call,
    stopped.then(cancelled.fn, s.says, cancelled.outputs, **QUICK)  # so that only now no late answer can overwrite this
    return started


class _Small(NamedTuple):
    """A function that computes nothing, and the components it changes."""

    fn: Callable[..., Any]
    outputs: list[Any]


def _between(s: Screen) -> tuple[_Small, _Small, _Small, _Small]:
    """What the screen does when a run is asked for, is over, has failed, and is cancelled."""
    buttons = [s.generate, s.attribute, s.again, *s.examples, s.cancel]

    def usable(*, idle: bool) -> list[Any]:
        return [gr.update(interactive=idle)] * (len(buttons) - 1) + [gr.update(interactive=not idle)]

    def begin() -> list[Any]:
        said = [says_html(words.WORKING), status_html(words.WAITING)]
        gone = [gr.update(visible=False)] * len(s.hidden())
        return [*usable(idle=False), *said, *[""] * len(s.empty()), *gone]

    def end() -> list[Any]:
        return usable(idle=True)

    def failed(status: str) -> list[Any]:
        never = status == status_html(words.WAITING)  # the queue was full, or an input was refused by gradio itself
        said = [says_html(words.NOT_STARTED), status_html("")] if never else [gr.skip(), gr.skip()]
        return [*usable(idle=True), *said]

    def cancelled(says: str) -> list[Any]:
        early = says in (says_html(words.WORKING), says_html(words.NOT_STARTED))
        return [says_html(words.CANCELLED_EARLY) if early else gr.skip(), status_html("" if early else words.CANCELLED)]

    said = [s.says, s.status]
    return (
        _Small(begin, [*buttons, *said, *s.empty(), *s.hidden()]),
        _Small(end, buttons),
        _Small(failed, [*buttons, *said]),
        _Small(cancelled, said),
    )


def _connect_small(demo: gr.Blocks, s: Screen, service: Service) -> None:
    """Everything that computes nothing: the prompt, the buttons of a tab, the expected times."""

    def fill(object_name: str, style: str) -> str:
        return first_caption(service.group_set, object_name, style)

    def times(methods: list[str], more_captions: bool) -> Any:
        known = {e: service.estimate(methods, e) for e in EFFORTS} if methods else {}
        main = main_method(service.methods())
        if more_captions and main in methods:
            known = {e: seconds + 2 * service.estimate([main], e) for e, seconds in known.items()}
        return gr.update(choices=effort_choices(known))

    for part in (s.object_name, s.style):
        part.input(fill, [s.object_name, s.style], s.prompt, **QUICK)
    for tab, first in zip(s.tabs, (True, False), strict=True):
        tab.select(
            lambda first=first: (gr.update(visible=first), gr.update(visible=not first)),
            None,
            [s.generate, s.attribute],
            **QUICK,
        )
    changes = [demo.load, s.methods.change, s.more_captions.change]
    gr.on(changes, times, [s.methods, s.more_captions], s.effort, **QUICK)
