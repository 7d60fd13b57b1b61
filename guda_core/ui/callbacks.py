"""What happens when something is pressed. Each run keeps its state to itself, so that two never mix."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, cast

import gradio as gr
from gradio.utils import get_upload_folder

from guda_core.errors import GudaError, ImageError
from guda_core.pipeline import EFFORTS, Service, Step
from guda_core.plots import bars
from guda_core.records import Attribution, GroupScore, Query
from guda_core.ui import words
from guda_core.ui.layout import (
    Screen,
    effort_choices,
    first_caption,
    in_order,
    notes_html,
    says_html,
    status_html,
    table_html,
)

log = logging.getLogger(__name__)
Update = dict[Any, Any]  # component -> its new value
PAUSE_S = 0.25  # between two updates of a screen, so that a slow browser keeps up
QUICK: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def uploaded(path: str | None) -> Path:
    """The path of an uploaded picture, which lies in gradio's own cache.

    Raises:
        ImageError: there is none, or it is a web address, data or a file that nobody uploaded.
    """
    if not path:
        raise ImageError(words.NO_PICTURE)
    if path.startswith("data:") or "://" in path:
        raise ImageError(words.NOT_UPLOADED)
    full = Path(path).resolve()
    if not full.is_relative_to(Path(get_upload_folder()).resolve()):
        raise ImageError(words.NOT_UPLOADED)
    return full


def _whole(value: Any) -> Any:
    """20.0 -> 20; anything else is left for the service to refuse."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _told(run: Callable[..., Iterator[Update]]) -> Callable[..., Iterator[Update]]:
    """Make a run say what stopped it, on the screen and as the error of the call. Texts from outside are escaped.

    The sentence stands where the answer would; gradio's own pop-up, which would cover it, is left out.
    """

    @wraps(run)
    def told(self: Runs, *args: Any) -> Iterator[Update]:
        try:
            yield from run(self, *args)
        except GudaError as e:
            yield {self.screen.says: says_html(f"Not done. {e}"), self.screen.status: status_html("")}
            raise gr.Error(escape(str(e)), visible=False, print_exception=False) from None
        except Exception:
            log.exception("A run failed")
            yield {self.screen.says: says_html(words.FAULT), self.screen.status: status_html("")}
            raise gr.Error(words.FAULT, visible=False, print_exception=False) from None

    return told


class Runs:
    """The generators behind the buttons, for one service and one screen."""

    def __init__(self, service: Service, screen: Screen) -> None:
        self.service, self.screen = service, screen

    @_told
    def generate(
        self, prompt: str, seed: Any, steps: Any, guidance: Any, methods: list[str], effort: str
    ) -> Iterator[Update]:
        """Draw a picture, then score it."""
        query, began = None, time.monotonic()
        made = self.service.generate(prompt=prompt, seed=_whole(seed), steps=_whole(steps), guidance=guidance)
        with closing(cast(Generator, made)):
            for step in made:
                if isinstance(step, Step):
                    text = f"Drawing: step {step.done} of {step.steps}"
                    yield {self.screen.status: _progress(text, step.done / step.steps, began)}
                else:
                    query = step
        assert query is not None
        yield from self._score(query, methods, effort)

    @_told
    def attribute(self, path: str | None, caption: str, methods: list[str], effort: str) -> Iterator[Update]:
        """Prepare an uploaded picture, then score it."""
        query = self.service.prepare(uploaded(path), prompt=caption or "")
        yield from self._score(query, methods, effort)

    @_told
    def again(self, query: Query | None, methods: list[str], effort: str) -> Iterator[Update]:
        """Score this visitor's last picture once more."""
        if query is None:
            raise ImageError(words.PICTURE_GONE)
        yield from self._score(query, methods, effort)

    def _score(self, query: Query, methods: list[str], effort: str) -> Iterator[Update]:
        """Show the picture, then each answer as it comes; the last update holds everything, for callers of the API."""
        s, names = self.screen, self.service.methods()
        everything: Update = {
            s.query: query,
            s.scored: gr.update(visible=True),
            s.picture: query.pixels,
            s.notes: notes_html(query),
            s.says: says_html(words.WORKING),
        }
        yield {**everything, s.status: status_html(words.SCORING)}
        asked = [m for m in in_order(names) if m in methods]
        answers: dict[str, Attribution] = {}
        drawn: Mapping[str, GroupScore] | None = None  # what the bars now show
        began: dict[str, float] = {}
        now, told = time.monotonic(), -PAUSE_S
        stream = self.service.attribute(query, methods=methods, effort=effort)
        with closing(cast(Generator, stream)):
            for a in stream:
                began.setdefault(a.method, now)
                drawn = drawn if a.method in answers else None  # each method's first answer is shown at once
                answers[a.method] = a
                now = time.monotonic()
                if a.progress < 1 and drawn is not None and now - told < PAUSE_S:
                    continue
                shown = self._shown(a, answers, asked) if a.groups and a.groups != drawn else {}
                everything |= shown
                drawn, told = a.groups, now
                yield {**shown, s.status: _progress(names[a.method], a.progress, began[a.method])}
        yield {**everything, s.again: gr.update(visible=True), s.status: status_html(words.DONE)}

    def _shown(self, a: Attribution, answers: dict[str, Attribution], asked: list[str]) -> Update:
        """The updates that one new answer makes: the sentence, and its method's bars and table."""
        s, sets = self.screen, self.service.group_set
        panel = s.panels[a.method]
        return {
            s.says: says_html(words.headline(answers, sets, asked)),
            panel.box: gr.update(visible=True),
            panel.plot: bars(a, sets),
            panel.table: table_html(a, sets, self.service.methods()[a.method]),
        }


def _progress(text: str, done: float, began: float) -> str:
    """A status line with the seconds still to go, extrapolated from those since `began` (monotonic)."""
    spent = time.monotonic() - began
    left = f", {words.seconds(spent * (1 - done) / done)} left" if 0 < done < 1 else ""
    return status_html(f"{text}: {done:.0%}{left}", done)


def connect(demo: gr.Blocks, s: Screen, service: Service) -> None:
    """Wire every event of the screen."""
    _connect_small(demo, s, service)
    runs = Runs(service, s)
    outputs: list[Any] = [s.query, s.says, s.status, s.scored, s.picture, s.notes, s.again]
    for p in s.panels.values():
        outputs += [p.box, p.plot, p.table]
    options = [s.methods, s.effort]
    asked = (
        (s.generate, runs.generate, [s.prompt, s.seed, s.steps, s.guidance, *options], "generate"),
        (s.attribute, runs.attribute, [s.upload, s.caption, *options], "attribute"),
        (s.again, runs.again, [s.query, *options], "again"),
    )
    started = []
    begin, end, failed, cancelled = _between(s)
    for button, run, inputs, name in asked:
        pressed = button.click(begin.fn, None, begin.outputs, **QUICK)
        running = pressed.then(
            run, inputs, outputs, api_name=name, show_progress="minimal", show_progress_on=s.status,
            concurrency_id="compute", concurrency_limit=1,
        )  # fmt: skip
        running.then(end.fn, None, end.outputs, **QUICK)
        running.failure(failed.fn, s.status, failed.outputs, **QUICK)
        started.append(running)
    s.cancel.click(None, None, s.status, js=f"() => {json.dumps(status_html(words.CANCELLING))}", **QUICK)
    stopped = s.cancel.click(lambda: None, None, None, cancels=started, **QUICK)  # the browser cancels after the call,
    stopped.then(cancelled.fn, s.says, cancelled.outputs, **QUICK)  # so that only now no late answer can overwrite this


class _Small(NamedTuple):
    """A function that computes nothing, and the components it changes."""

    fn: Callable[..., Any]
    outputs: list[Any]


def _between(s: Screen) -> tuple[_Small, _Small, _Small, _Small]:
    """What the screen does when a run is asked for, is over, has failed, and is cancelled."""
    buttons = [s.generate, s.attribute, s.again, s.cancel]
    hidden = [s.scored, *(p.box for p in s.panels.values())]

    def usable(*, idle: bool) -> list[Any]:
        return [gr.update(interactive=idle)] * 3 + [gr.update(interactive=not idle)]

    def begin() -> list[Any]:
        said = [says_html(words.WORKING), status_html(words.WAITING)]
        return [*usable(idle=False), *said, *[gr.update(visible=False)] * len(hidden)]

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
        _Small(begin, [*buttons, *said, *hidden]),
        _Small(end, buttons),
        _Small(failed, [*buttons, *said]),
        _Small(cancelled, said),
    )


def _connect_small(demo: gr.Blocks, s: Screen, service: Service) -> None:
    """Everything that computes nothing: the prompt, the buttons of a tab, the expected times."""

    def fill(object_name: str, style: str) -> str:
        return first_caption(service.group_set, object_name, style)

    def times(methods: list[str]) -> Any:
        return gr.update(choices=effort_choices({e: service.estimate(methods, e) for e in EFFORTS} if methods else {}))

    for part in (s.object_name, s.style):
        part.input(fill, [s.object_name, s.style], s.prompt, **QUICK)
    for tab, first in zip(s.tabs, (True, False), strict=True):
        tab.select(
            lambda first=first: (gr.update(visible=first), gr.update(visible=not first)),
            None,
            [s.generate, s.attribute],
            **QUICK,
        )
    gr.on([demo.load, s.methods.change], times, s.methods, s.effort, **QUICK)
