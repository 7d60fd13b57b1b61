"""The screen that sets the methods of the last answer side by side: each group's rank under each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
import numpy as np

from guda_core.answers import sentences
from guda_core.answers.markup import Html, folded, heading, note, table, text, unasked
from guda_core.answers.verdict import is_out
from guda_core.attribution import metrics
from guda_core.records import VERDICTS, Attribution, GroupSet
from guda_core.service import Service
from guda_core.ui import words
from guda_core.ui.answer import Answer
from guda_core.ui.benchmarks import has_figures
from guda_core.ui.blocks import QUICK, block

ABOUT = (
    "Methods may disagree. One asks what the model needed, another asks what the picture looks like. This page "
    "compares ranks, because most methods have their own unit."
)
NO_ORACLE = (
    "The oracle (a model trained again without each group) is not available for this model. So this page cannot say "
    "which method is right about this picture."
)
BESIDE = (
    "The other methods try to predict the oracle. The oracle is itself only one training. Methods that draw noise saw "
    "the same noise here, so they may agree with it a little more than if it had noise of its own. Each method is "
    "compared on the groups that it and the oracle score. Rank correlation: 1 is the same order of them, 0 is no "
    "relation, -1 is the reverse order."
)
OVER_MANY = "The Benchmarks tab says how often each method agrees with the oracle over many pictures."


def shown(answer: Answer | None, service: Service) -> Html:
    """The comparison of one answer's methods; a hint where there is none."""
    answers = answer.scored() if answer is not None else []
    if not answers:
        return text(words.NO_ANSWER)
    sets, known = service.group_set, service.methods()
    names = {m: info.name for m, info in known.items()}
    oracle = next((m for m, info in known.items() if info.oracle), None)
    ranks = sentences.shared_ranks(answers)
    order = list(dict.fromkeys([*ranks.get(answers[0].method, ()), *answers[0].ranked(), *sets.groups]))
    shown_names = [names[a.method] for a in answers]
    head = ["Group", *(f"Rank: {n}" for n in shown_names), "Difference"]
    scores = ["Group", *(f"{n} ({a.unit})" for n, a in zip(shown_names, answers, strict=True))]
    rows, figures = [], []
    for g in order:
        places = [r[g] for r in ranks.values() if g in r]
        cells: list[Any] = [sets.groups[g].name, *(str(ranks.get(a.method, {}).get(g, "-")) for a in answers)]
        cells.append(_spread(places) if len(answers) > 1 else "")
        rows.append(cells)
        own = [a.groups[g] for a in answers]
        shown_own = [
            sentences.STATUS[s.status] if s.score is None else sentences.score(s, a.unit)
            for a, s in zip(answers, own, strict=True)
        ]
        figures.append([sets.groups[g].name, *shown_own])
    said = [*sentences.compared(answers, sets, names), ABOUT]
    numbers = "." + "n" * len(answers)
    body = table("Rank of every group under every method", head, rows, numbers=numbers, css="guda-ranks")
    body += folded("The scores", table("Score of every group by every method", scores, figures, numbers=numbers))
    beside = _beside_the_oracle(answers, oracle, sets, names)
    after = [] if oracle is not None else [NO_ORACLE]
    after += [OVER_MANY] if (after or beside) and has_figures(service) else []
    unfinished = [
        f"{names[a.method]} was stopped early. Its ranks could still change." for a in answers if a.progress < 1
    ]
    whole = Html(text(*said) + body + beside + note(*unfinished, *after))
    scope = answer.scope if answer is not None else None
    away = text(VERDICTS[scope.verdict]) if is_out(scope) else ""
    return Html(heading("Where the methods agree") + away + unasked(whole, scope))


def _beside_the_oracle(
    answers: list[Attribution], method: str | None, group_set: GroupSet, names: Mapping[str, str]
) -> Html:
    """How far each method agrees with the oracle about this picture; nothing where the oracle was not asked. method:
    the oracle's id."""
    oracle = next((a for a in answers if a.method == method), None)
    others = [a for a in answers if a.method != method and a.ranked()]
    if oracle is None or not oracle.ranked() or not others:
        return Html("")
    rows, top = [], oracle.ranked()[0]
    for a in others:
        shared = sentences.shared_ranks([a, oracle])[a.method]
        own, truth = (np.array([[of.groups[g].score for g in shared]], float) for of in (a, oracle))
        first = "not scored" if top not in shared else "yes" if shared[top] == 1 else "no"
        alike = f"{metrics.spearman(own, truth)[0]:.2f}" if len(shared) > 1 else "-"
        rows.append([names[a.method], first, alike])
    head = ["Method", f"Also puts {sentences.called(group_set, top)} first", "Rank correlation"]
    body = table("Agreement with the oracle on this picture", head, rows, numbers="..n")
    return Html(heading("Compared with the oracle, on this picture") + note(BESIDE) + body)


def _spread(places: list[int]) -> str:
    if len(places) < 2:
        return "not ranked by all"
    apart = max(places) - min(places)
    return "same rank" if not apart else f"{apart} {'rank' if apart == 1 else 'ranks'} apart"


def draw() -> gr.HTML:
    """Draw the screen inside its tab."""
    return block(text(words.NO_ANSWER))


def connect(tab: gr.Tab, screen: gr.HTML, service: Service, answer: gr.State, runs: list[Any]) -> None:
    """Fill the screen when its tab is opened and when a run is over."""
    for event in (tab.select, *(r.then for r in runs)):
        event(lambda a: shown(a, service), answer, screen, **QUICK)
