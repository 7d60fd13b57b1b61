"""What happens when something is pressed. Each run keeps its state to itself, so that two never mix."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property, wraps
from html import escape, unescape
from pathlib import Path
from typing import Any, cast

import gradio as gr

from guda_core.answers.markup import Html, note, notes_html, picture_html, status_html, verdict_html
from guda_core.answers.other_captions import BEST, GIVEN, NONE, captions_html
from guda_core.answers.shown import near_html, shown_html
from guda_core.answers.verdict import CANCELLED_EARLY, WORKING_VERDICT, Verdict, is_out, verdict
from guda_core.data.images import read_file
from guda_core.data.prompts import check_options
from guda_core.diffusion.memory import NO_MEMORY, is_out_of_memory
from guda_core.errors import GudaError, ImageError, ScoreError, lacked
from guda_core.records import Attribution, GroupScore, Provenance, Query, Scope, Tried
from guda_core.service import NO_NEAR, Service, Step, main_first, main_method
from guda_core.ui import examples, words
from guda_core.ui.answer import Answer
from guda_core.ui.layout import Screen
from guda_core.ui.panels import main_panel, other_panel, scope_html
from guda_core.ui.progress import CAPTIONS, DRAW, SCOPE, Progress, plan
from guda_core.ui.samples import why_not
from guda_core.ui.seeing import pictures_of, seen_in_pictures, with_word
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
            yield {self.screen.says: verdict_html(Verdict("Not done", sentence)), self.screen.status: status_html("")}
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
        self.shelf = examples.Shelf(service, self._stored)
        self.slower = 1.0  # than expected, as the last answer that was whole told

    def plan(self, methods: Sequence[str], effort: str, drawn: int = 0, **more: Any) -> Progress:
        """What a run will do. drawn: steps of a picture that the model drew; more: as of `progress.plan`."""
        pictures = pictures_of(self.service, methods, effort, drawn)
        return plan(self.service, methods, effort, pictures=pictures, slower=self.slower, **more)

    @_told
    def generate(
        self, prompt: str, seed: Any, steps: Any, guidance: Any, methods: list[str], effort: str
    ) -> Iterator[Update]:
        """Draw a picture, then score it."""
        steps = whole(steps)
        check_options(seed=whole(seed), steps=steps, guidance=guidance)
        progress = self.plan(methods, effort, steps, steps=steps)
        query = yield from self._drawn(prompt, whole(seed), steps, guidance, progress)
        yield from self._score(query, methods, effort, progress)

    @_told
    def attribute(
        self, path: str | None, caption: str, more_captions: bool, methods: list[str], effort: str
    ) -> Iterator[Update]:
        """Prepare an uploaded picture, then score it, and when asked also under other captions."""
        file = uploaded(path)
        query = self.service.prepare(read_file(file), prompt=caption or "")
        progress = self.plan(methods, effort, scope=True, captions=more_captions)
        yield from self._score(query, methods, effort, progress, more_captions=more_captions, file=file)

    @_told
    def again(self, answer: Answer | None, methods: list[str], effort: str) -> Iterator[Update]:
        """Score this visitor's last picture once more."""
        if answer is None:
            raise ImageError(words.PICTURE_GONE)
        s = self.screen
        yield {s.answer: None, s.says: verdict_html(WORKING_VERDICT), **dict.fromkeys(s.empty(), "")}
        drawn = answer.query.drawn
        uploads = answer.query.file_hash is not None
        progress = self.plan(methods, effort, drawn.steps if drawn is not None else 0, scope=uploads)
        yield from self._score(answer.query, methods, effort, progress, file=answer.file)

    def kept(self, example: examples.Example, *, wait: bool = True) -> Update | None:
        """What is shown of an example that was computed earlier; None when it has to be computed. wait: for another
        press that reads it just now; else None then too."""
        shown = self.shelf.get(example, tuple(main_first(self.service.methods())), wait=wait)
        return None if shown is None else {k: dict(v) if isinstance(v, dict) else v for k, v in shown.items()}

    def _stored(self, answer: Answer) -> Update:
        return {**self._whole_answer(answer), self.screen.status: status_html(words.STORED)}

    @_told
    def example(self, example: examples.Example) -> Iterator[Update]:
        """One example: what was kept of it at once, else drawn, scored and kept."""
        known = self.kept(example)
        if known is not None:
            yield known
            return
        methods = tuple(main_first(self.service.methods()))
        prompt = example.prompt(self.service.group_set)
        progress = self.plan(methods, examples.EFFORT, example.steps, steps=example.steps)
        query = yield from self._drawn(prompt, example.seed, example.steps, example.guidance, progress)
        answer = yield from self._score(query, methods, examples.EFFORT, progress)
        short = any(lacked(g.reason or "") for a in answer.found.values() for g in a.groups.values())
        if not short and answer.shown.missing in ("", progress.pictures.missing):  # a passing fault is not kept
            examples.keep(self.service, example, answer)

    def _drawn(
        self, prompt: str, seed: Any, steps: Any, guidance: Any, progress: Progress
    ) -> Generator[Update, None, Query]:
        """Tells of every step, and returns the finished picture."""
        query = None
        made = self.service.generate(prompt=prompt, seed=seed, steps=steps, guidance=guidance)
        with closing(cast(Generator, made)):
            for step in made:
                if isinstance(step, Step):
                    yield {self.screen.status: progress.at(DRAW, step.done / step.steps)}
                else:
                    query = step
        assert query is not None
        return query

    def _score(
        self,
        query: Query,
        methods: Sequence[str],
        effort: str,
        progress: Progress,
        *,
        more_captions: bool = False,
        file: Path | None = None,
    ) -> Generator[Update, None, Answer]:
        """Show the picture, then each answer as it comes; the last update holds everything, for callers of the API.
        file: that the picture came from."""
        s, known = self.screen, self.service.methods()
        asked = tuple(m for m in main_first(known) if m in methods)
        answer = Answer(query, asked, effort, file=file)
        everything: Update = {**self._picture(answer), s.says: verdict_html(WORKING_VERDICT)}
        uploads = query.file_hash is not None
        yield {
            **everything,
            s.status: progress.at(SCOPE, 0.0) if uploads else progress.at(asked[0] if asked else "", 0.0),
        }
        answer = replace(answer, scope=scope_of(self.service, query))
        everything |= {s.scope: scope_html(answer), s.answer: answer}
        if uploads:
            yield {s.scope: everything[s.scope], s.answer: answer, s.status: progress.at(SCOPE, 1.0)}
        drawn: Mapping[str, GroupScore] | None = None  # what the bars now show
        told = -PAUSE_S
        stream = self.service.attribute(query, methods=list(methods), effort=effort)
        with closing(cast(Generator, stream)):
            for a in stream:
                drawn = drawn if a.method in answer.found else None  # each method's first answer is shown at once
                answer = replace(answer, found={**answer.found, a.method: a})
                status, now = progress.at(a.method, a.progress), time.monotonic()
                if a.progress < 1 and drawn is not None and now - told < PAUSE_S:
                    continue
                now_shown = a.groups and a.groups != drawn and (a.progress >= 1 or a.method == asked[0])
                shown = self._shown(a, answer) if now_shown else {}
                everything |= shown
                drawn, told = a.groups, now
                yield {**shown, s.status: status}
        for a in answer.scored():
            everything |= self._shown(a, answer)
        everything |= {s.says: self._says(answer), s.answer: answer}
        main = main_method(known)
        if more_captions and main in answer.found:
            answer = yield from self._other_captions(answer, main, progress)
            everything |= {s.captions: self._captions(answer), s.answer: answer}
        main_answer = answer.found.get(answer.methods[0]) if answer.methods else None
        if not is_out(answer.scope):
            try:
                answer = replace(answer, shown=replace(answer.shown, near=self.service.nearest(query)))
                everything |= self._shown(main_answer, answer) if main_answer is not None else {}
            except Exception as e:
                answer = replace(answer, shown=replace(answer.shown, missing=f"{NO_NEAR} {explained(e)}"))
                everything |= {s.shown: shown_html(answer.shown, self.service.group_set, known), s.answer: answer}
        for shown, status in seen_in_pictures(self.service, answer, progress, explained):
            new: Update = {}
            if shown is not answer.shown:
                answer = replace(answer, shown=shown)
                new = {s.shown: shown_html(shown, self.service.group_set, known), s.answer: answer}
            everything |= new
            yield {**new, s.status: status}
        self.slower = progress.learned()
        yield {**everything, s.again: gr.update(visible=True), s.status: status_html(words.DONE)}
        return answer

    def _other_captions(self, answer: Answer, main: str, progress: Progress) -> Generator[Update, None, Answer]:
        """Score the picture by the main method under the best caption that CLIP finds and under none; tells of its
        progress. An error ends that, and leaves the scores that are there."""
        query = answer.query
        tried = [Tried(GIVEN if query.prompt else NONE, query.prompt, answer.found[main])]
        try:
            best = self.service.best_caption(query)
            wanted = [*([(BEST, best)] if best else []), (NONE, "")]
            for i, (label, caption) in enumerate(wanted):
                if any(t.caption == caption for t in tried):
                    continue
                last = None
                other = self.service.with_prompt(query, caption)
                stream = self.service.attribute(other, methods=[main], effort=answer.effort)
                with closing(cast(Generator, stream)):
                    for last in stream:
                        yield {self.screen.status: progress.at(CAPTIONS, (i + last.progress) / len(wanted))}
                if last is not None:
                    tried.append(Tried(label, caption, last))
        except Exception as e:
            some = tuple(tried) if len(tried) > 1 else ()
            return replace(answer, tried=some, untried=f"{words.NO_CAPTIONS} {explained(e)}")
        return replace(answer, tried=tuple(tried))

    def _captions(self, answer: Answer) -> Html:
        """What the other captions gave, and why one of them gave nothing."""
        made = captions_html(answer.tried, self.service.group_set, answer.scope, self.main_name)
        return Html(made + note(answer.untried)) if answer.untried else made

    def _says(self, answer: Answer, *, over: bool = False) -> str:
        known = self.service.methods()
        return verdict_html(
            verdict(answer.found, self.service.group_set, answer.methods, known, scope=answer.scope, over=over)
        )

    def cancelled(self, answer: Answer | None) -> str:
        """The headline of an answer that was cancelled."""
        return verdict_html(CANCELLED_EARLY) if answer is None else self._says(answer, over=True)

    def _picture(self, answer: Answer) -> Update:
        s, query = self.screen, answer.query
        shown = {s.welcome: gr.update(visible=False), s.picture: picture_html(query.pixels, query.prompt)}
        return {s.answer: answer, s.notes: notes_html(query), **shown}

    def _whole_answer(self, answer: Answer) -> Update:
        """All of a finished answer at once."""
        answer = with_word(self.service, answer)
        out: Update = {**self._picture(answer), self.screen.again: gr.update(visible=True)}
        for a in answer.scored():
            out |= self._shown(a, answer)
        shown = shown_html(answer.shown, self.service.group_set, self.service.methods())
        return {**out, self.screen.says: self._says(answer, over=True), self.screen.shown: shown}

    def restored(self, answer: Answer) -> Update:
        """A finished answer of this visit, as it stood; what it lacks is empty."""
        s = self.screen
        more = {
            s.scope: scope_html(answer),
            s.captions: self._captions(answer),
            s.status: status_html(words.BROUGHT_BACK),
        }
        return {**dict.fromkeys(s.empty(), ""), **self._whole_answer(answer), **more}

    def _shown(self, a: Attribution, answer: Answer) -> Update:
        """The updates that one new answer makes: the headline, and its method's bars and table."""
        s, sets, info = self.screen, self.service.group_set, self.service.methods()[a.method]
        if a.method == answer.methods[0]:
            said = " ".join(self._provenance.said_of(answer.methods))
            panel = main_panel(a, sets, info, caveat=said, scope=answer.scope)
            panel += near_html(answer.shown.near, sets, self._no_pictures if answer.shown.near else "")
        else:
            panel = other_panel(a, sets, info, scope=answer.scope)
        return {s.answer: answer, s.says: self._says(answer), s.panels[a.method]: panel}

    @property
    def main_name(self) -> str:
        """Name of the main method; "" where it is not offered."""
        known = self.service.methods()
        return known[main].name if (main := main_method(known)) else ""

    @cached_property
    def _no_pictures(self) -> str:
        """Why the training pictures most alike are not shown, where they are not."""
        return why_not(self.service.group_set)

    @cached_property
    def _provenance(self) -> Provenance:
        """With what has to be said of this model's scores."""
        return self.service.provenance()
