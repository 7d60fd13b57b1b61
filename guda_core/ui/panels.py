"""What a finished or growing answer looks like below its headline: the main method open, the others folded."""

from __future__ import annotations

from collections.abc import Sequence

from guda_core.answers import sentences
from guda_core.answers.markup import Html, banner, folded, heading, note, safe, scores_html, table
from guda_core.answers.plots import bars
from guda_core.records import Attribution, GroupSet, MethodInfo, Scope
from guda_core.ui.answer import Answer, Tried

FIGURES = "The same figures as a table, and what they mean"


def out(scope: Scope | None) -> bool:
    """Whether a picture is out of scope, so that no group is named unasked."""
    return scope is not None and scope.verdict == "out of scope"


def main_panel(
    a: Attribution, group_set: GroupSet, info: MethodInfo, *, caveat: str = "", scope: Scope | None = None
) -> Html:
    """The bars of the method that the headline is about, and its figures. Out of scope, all of it is folded away.

    caveat: what has to be said of this model's scores.
    """
    title = Html(f'<h3 class="guda-method">{safe(info.name)}: what each group gives</h3>')
    meaning = note(info.note, sentences.READING) + scores_html(a, group_set, info.name)
    body = Html(title + bars(a, group_set, info.name) + (banner(caveat) if caveat else "") + folded(FIGURES, meaning))
    if out(scope):
        return folded(sentences.ALL_THE_SAME, body, css="guda-out")
    return body


def other_panel(a: Attribution, group_set: GroupSet, info: MethodInfo, *, scope: Scope | None = None) -> Html:
    """One line with the ranks by a method, which unfolds to its bars and figures. Out of scope, without the ranks."""
    body = note(info.note) + bars(a, group_set, info.name) + scores_html(a, group_set, info.name)
    ranks = "" if out(scope) else sentences.strip(a, group_set)
    name = Html(f"<b>{safe(info.name)}</b> <span>{safe(ranks)}</span>")
    return folded(name, body, css="guda-strip")


def scope_html(answer: Answer) -> Html:
    """What is said of the scope of an upload beside its picture; "" where the headline says it."""
    scope = answer.scope
    if scope is None or answer.query.file_hash is None or scope.verdict == "out of scope":
        return Html()
    return note(sentences.scope_note(scope))


def captions_html(tried: Sequence[Tried], group_set: GroupSet, scope: Scope | None) -> Html:
    """The first group under each caption that was tried; "" where none was. Out of scope, it is folded away."""
    if not tried:
        return Html()
    rows = []
    for t in tried:
        first = t.answer.ranked()[:1]
        score = t.answer.groups[first[0]] if first else None
        figure = sentences.number(score.score or 0.0, t.answer.unit) if score else "-"
        span = sentences.interval(score, t.answer.unit) if score else "-"
        rows.append((t.label, t.caption or "-", sentences.first_of(t.answer, group_set), figure, span))
    head = ("Tried", "Caption", "First group", f"Score ({tried[0].answer.unit})", "95% interval")
    said = sentences.captions_agree([t.answer for t in tried], group_set)
    body = table("The first group under each caption", head, rows, numbers="...nn")
    if out(scope):
        return folded("Other captions", note(said) + body, css="guda-out")
    return Html(heading("Other captions") + note(said) + body)
