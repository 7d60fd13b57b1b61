"""The screen that sets the methods of the last answer side by side: each group's rank under each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from guda_core.pipeline import Service
from guda_core.ui import words
from guda_core.ui.answer import Answer
from guda_core.ui.connect import QUICK
from guda_core.ui.markup import Html, block, heading, note, table, text

ORACLE = "logo"
ABOUT = (
    "Two methods may well disagree: GUDA asks what the model needed, CLIP similarity what the picture looks like. Only "
    "ranks are compared here, since their units have nothing to do with each other."
)
NO_ORACLE = (
    "The oracle, a model trained again without each group, is not offered for this model, so this page cannot say "
    "which method is right about this picture. How often each agrees with the oracle is on the Benchmarks tab."
)


def shown(answer: Answer | None, service: Service) -> Html:
    """The comparison of one answer's methods; a hint where there is none."""
    answers = answer.scored() if answer is not None else []
    if not answers:
        return text(words.NO_ANSWER)
    sets, names = service.group_set, service.methods()
    ranks = {a.method: {g: i + 1 for i, g in enumerate(a.ranked())} for a in answers}
    order = [*answers[0].ranked(), *(g for g in sets.groups if g not in ranks[answers[0].method])]
    shown_names = [f"{names[a.method]}{', the oracle' if a.method == ORACLE else ''}" for a in answers]
    head = ["Group", *(f"Rank: {n}" for n in shown_names), "Difference"]
    head += [f"Score: {n} ({a.unit})" for n, a in zip(shown_names, answers, strict=True)]
    rows = []
    for g in order:
        places = [r[g] for r in ranks.values() if g in r]
        cells: list[Any] = [sets.groups[g].name, *(str(ranks[a.method].get(g, "-")) for a in answers)]
        cells.append(_spread(places) if len(answers) > 1 else "")
        for a in answers:
            s = a.groups[g]
            cells.append(words.number(s.score, a.unit) if s.score is not None else words.STATUS[s.status])
        rows.append(cells)
    said = [*words.compared(answers, sets, names), ABOUT]
    figures = "n" * len(answers)
    numbers = f".{figures}.{figures}"
    body = table("Rank of every group under every method", head, rows, numbers=numbers, css="guda-ranks")
    after = [] if ORACLE in names else [NO_ORACLE]
    unfinished = [
        f"{names[a.method]} was stopped early: its ranks may still change." for a in answers if a.progress < 1
    ]
    return Html(heading("Where the methods agree") + text(*said) + body + note(*unfinished, *after))


def _spread(places: list[int]) -> str:
    if len(places) < 2:
        return "not ranked by all"
    apart = max(places) - min(places)
    return "same rank" if not apart else f"{apart} {'rank' if apart == 1 else 'ranks'} apart"


@dataclass(frozen=True)
class Compare:
    """The parts of this screen."""

    tab: gr.Tab
    shown: gr.HTML


def draw(tab: gr.Tab) -> Compare:
    """Draw the screen inside its tab."""
    return Compare(tab, block(text(words.NO_ANSWER)))


def connect(c: Compare, service: Service, answer: gr.State, runs: list[Any]) -> None:
    """Fill the screen when it is opened and when a run is over."""
    for event in (c.tab.select, *(r.then for r in runs)):
        event(lambda a: shown(a, service), answer, c.shown, **QUICK)
