"""What happens when something is pressed. Each run keeps its state to itself, so that two never mix."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import wraps
from html import escape, unescape
from typing import Any, cast

import gradio as gr

from guda_core.data.images import read_file
from guda_core.diffusion.memory import NO_MEMORY, is_out_of_memory
from guda_core.errors import GudaError, ImageError, ScoreError
from guda_core.records import Attribution, GroupScore, Query, Scope
from guda_core.service import Service, Step, main_first, main_method
from guda_core.ui import examples, words
from guda_core.ui.answer import Answer, Tried
from guda_core.ui.layout import Screen
from guda_core.ui.markup import (
    banner,
    heading,
    note,
    notes_html,
    picture_html,
    says_html,
    scores_html,
    status_html,
    table,
)
from guda_core.ui.plots import bars
from guda_core.ui.uploads import uploaded

log = logging.getLogger(__name__)
Update = dict[Any, Any]  # component -> its new value
WORKER = "ZeroGPU worker error"  # title of the platform's error that stands for ours, with nothing for a visitor
PAUSE_S = 0.25  # between two updates of a screen, so that a slow browser keeps up


def explained(error: Exception) -> str:
    """What a visitor is told of an error; everything unforeseen is logged and keeps its details to itself."""
    if isinstance(error, GudaError):
        return str(error)
    if is_out_of_memory(error):
        log.exception("Out of memory")
        return NO_MEMORY
    if isinstance(error, gr.Error) and error.title == WORKER and "aborted" in str(error.message):
        return words.ABORTED
    if isinstance(error, gr.Error) and error.title != WORKER:  # the platform's own word, as of a quota; it may be HTML
        return unescape(re.sub(r"<[^>]*>", "", error.message))
    log.exception("A run failed")
    return words.FAULT


def refusal(sentence: str) -> gr.Error:
    """The error of a call. The sentence is on the page; gradio's pop-up would cover it and is left out."""
    return gr.Error(escape(sentence), visible=False, print_exception=False)


def _told(run: Callable[..., Iterator[Update]]) -> Callable[..., Iterator[Update]]:
    """Make a run say what stopped it, on the screen and as the error of the call. Texts from outside are escaped."""

    @wraps(run)
    def told(self: Runs, *args: Any) -> Iterator[Update]:
        try:
            yield from run(self, *args)
        except Exception as e:
            sentence = explained(e)
            yield {self.screen.says: says_html(f"Not done. {sentence}"), self.screen.status: status_html("")}
            raise refusal(sentence) from None

    return told


def whole(value: Any) -> Any:
    """20.0 -> 20; anything else is left for the service to refuse."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def scope_of(service: Service, query: Query) -> Scope:
    """The service's word on whether the model could have made the picture. One that it just made is not asked about."""
    if query.file_hash is None:
        return Scope("not assessed", None, None, "", words.OWN_PICTURE)
    try:
        return service.scope(query)
    except ScoreError as e:
        return Scope("not assessed", None, None, "", str(e))


class Runs:
    """The generators behind the buttons, for one service and one screen."""

    def __init__(self, service: Service, screen: Screen) -> None:
        self.service, self.screen = service, screen

    @_told
    def generate(
        self, prompt: str, seed: Any, steps: Any, guidance: Any, methods: list[str], effort: str
    ) -> Iterator[Update]:
        """Draw a picture, then score it."""
        query = yield from self._drawn(prompt, whole(seed), whole(steps), guidance)
        yield from self._score(query, methods, effort)

    @_told
    def attribute(
        self, path: str | None, caption: str, more_captions: bool, methods: list[str], effort: str
    ) -> Iterator[Update]:
        """Prepare an uploaded picture, then score it, and when asked also under other captions."""
        query = self.service.prepare(read_file(uploaded(path)), prompt=caption or "")
        yield from self._score(query, methods, effort, more_captions=more_captions)

    @_told
    def again(self, answer: Answer | None, methods: list[str], effort: str) -> Iterator[Update]:
        """Score this visitor's last picture once more."""
        if answer is None:
            raise ImageError(words.PICTURE_GONE)
        yield from self._score(answer.query, methods, effort)

    @_told
    def example(self, example: examples.Example) -> Iterator[Update]:
        """One example: what was kept of it at once, else drawn, scored and kept."""
        methods = tuple(main_first(self.service.methods()))
        kept = examples.kept(self.service, example, methods)
        if kept is not None:
            yield {**self._whole_answer(kept), self.screen.status: status_html(words.STORED)}
            return
        prompt = example.prompt(self.service.group_set)
        query = yield from self._drawn(prompt, example.seed, example.steps, example.guidance)
        answer = yield from self._score(query, methods, examples.EFFORT)
        examples.keep(self.service, example, answer)

    def _drawn(self, prompt: str, seed: Any, steps: Any, guidance: Any) -> Generator[Update, None, Query]:
        """Tells of every step, and returns the finished picture."""
        query, began = None, time.monotonic()
        made = self.service.generate(prompt=prompt, seed=seed, steps=steps, guidance=guidance)
        with closing(cast(Generator, made)):
            for step in made:
                if isinstance(step, Step):
                    told = f"Drawing: step {step.done} of {step.steps}"
                    yield {self.screen.status: _progress(told, step.done / step.steps, began)}
                else:
                    query = step
        assert query is not None
        return query

    def _score(
        self, query: Query, methods: Sequence[str], effort: str, *, more_captions: bool = False
    ) -> Generator[Update, None, Answer]:
        """Show the picture, then each answer as it comes; the last update holds everything, for callers of the API."""
        s, known = self.screen, self.service.methods()
        asked = tuple(m for m in main_first(known) if m in methods)
        answer = Answer(query, asked, effort)
        everything: Update = {**self._picture(answer), s.says: says_html(words.WORKING)}
        yield {**everything, s.status: status_html(words.SCORING)}
        drawn: Mapping[str, GroupScore] | None = None  # what the bars now show
        began: dict[str, float] = {}
        now, told = time.monotonic(), -PAUSE_S
        stream = self.service.attribute(query, methods=list(methods), effort=effort)
        with closing(cast(Generator, stream)):
            for a in stream:
                began.setdefault(a.method, now)
                drawn = drawn if a.method in answer.found else None  # each method's first answer is shown at once
                answer = replace(answer, found={**answer.found, a.method: a})
                now = time.monotonic()
                if a.progress < 1 and drawn is not None and now - told < PAUSE_S:
                    continue
                shown = self._shown(a, answer) if a.groups and a.groups != drawn else {}
                everything |= shown
                drawn, told = a.groups, now
                yield {**shown, s.status: _progress(known[a.method].name, a.progress, began[a.method])}
                if answer.scope is None:
                    yield {s.status: status_html(words.SCOPING)}
                    answer = replace(answer, scope=scope_of(self.service, query))
                    everything |= (shown := {s.scope: self._scope(answer), s.answer: answer})
                    now = time.monotonic()
                    yield shown
        main = main_method(known)
        if more_captions and main in answer.found:
            answer = yield from self._other_captions(answer, main)
            everything |= {s.captions: self._captions(answer), s.answer: answer}
        yield {**everything, s.again: gr.update(visible=True), s.status: status_html(words.DONE)}
        return answer

    def _other_captions(self, answer: Answer, main: str) -> Generator[Update, None, Answer]:
        """Score the picture by the main method under the best caption that CLIP finds and under none; tells of its
        progress."""
        query = answer.query
        kind = "the caption given" if query.prompt else "no caption"
        tried = [Tried(kind, query.prompt, answer.found[main])]
        wanted = [("the best caption that CLIP finds", self.service.best_caption(query)), ("no caption", "")]
        for label, caption in wanted:
            if any(t.caption == caption for t in tried):
                continue
            began, last = time.monotonic(), None
            other = self.service.with_prompt(query, caption)
            stream = self.service.attribute(other, methods=[main], effort=answer.effort)
            with closing(cast(Generator, stream)):
                for last in stream:
                    told = f"Scoring with {label}"
                    yield {self.screen.status: _progress(told, last.progress, began)}
            if last is not None:
                tried.append(Tried(label, caption, last))
        return replace(answer, tried=tuple(tried))

    def _picture(self, answer: Answer) -> Update:
        s, query = self.screen, answer.query
        shown = {s.welcome: gr.update(visible=False), s.scored: gr.update(visible=True), s.picture: picture_html(query)}
        return {s.answer: answer, s.notes: notes_html(query), **shown}

    def _whole_answer(self, answer: Answer) -> Update:
        """All of a finished answer at once."""
        out: Update = {**self._picture(answer), self.screen.again: gr.update(visible=True)}
        for a in answer.scored():
            out |= self._shown(a, answer)
        return out

    def _shown(self, a: Attribution, answer: Answer) -> Update:
        """The updates that one new answer makes: the sentence, and its method's bars and table."""
        s, sets = self.screen, self.service.group_set
        panel, known = s.panels[a.method], self.service.methods()
        return {
            s.answer: answer,
            s.says: says_html(words.headline(answer.found, sets, answer.methods, known)),
            panel.box: gr.update(visible=True),
            panel.plot: bars(a, sets),
            panel.table: scores_html(a, sets, known[a.method].name),
        }

    def _scope(self, answer: Answer) -> str:
        scope = answer.scope
        if scope is None or answer.query.file_hash is None:
            return ""
        told = words.scope_note(scope)
        return banner(words.OUT_OF_SCOPE, told) if scope.verdict == "out of scope" else note(told)

    def _captions(self, answer: Answer) -> str:
        sets = self.service.group_set
        rows = []
        for t in answer.tried:
            first = t.answer.ranked()[:1]
            score = t.answer.groups[first[0]] if first else None
            figure = words.number(score.score or 0.0, t.answer.unit) if score else "-"
            span = words.interval(score, t.answer.unit) if score else "-"
            rows.append((t.label, t.caption or "-", words.first_of(t.answer, sets), figure, span))
        head = ("Tried", "Caption", "First group", f"Score ({answer.tried[0].answer.unit})", "95% interval")
        said = words.captions_agree([t.answer for t in answer.tried], sets)
        body = table("The first group under each caption", head, rows, numbers="...nn")
        return heading("Other captions") + note(said) + body


def _progress(what: str, done: float, began: float) -> str:
    """A status line with the seconds still to go, extrapolated from those since `began` (monotonic)."""
    spent = time.monotonic() - began
    left = f", {words.seconds(spent * (1 - done) / done)} left" if 0 < done < 1 else ""
    return status_html(f"{what}: {done:.0%}{left}", done)
