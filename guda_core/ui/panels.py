"""What a finished or growing answer looks like below its headline: the main method open, the others folded."""

from __future__ import annotations

from guda_core.answers import sentences
from guda_core.answers.markup import Html, banner, folded, note, safe, scores_html, unasked
from guda_core.answers.plots import bars
from guda_core.answers.verdict import is_out
from guda_core.records import Attribution, GroupSet, MethodInfo, Scope
from guda_core.ui.answer import Answer

FIGURES = "The same figures as a table, and what they mean"


def main_panel(
    a: Attribution, group_set: GroupSet, info: MethodInfo, *, caveat: str = "", scope: Scope | None = None
) -> Html:
    """The bars of the method that the headline is about, and its figures. Out of scope, all of it is folded away.

    caveat: what has to be said of this model's scores.
    """
    title = Html(f'<h3 class="guda-method">{safe(info.name)}: what each group gives</h3>')
    meaning = note(info.note, sentences.READING) + scores_html(a, group_set, info.name)
    body = Html(title + bars(a, group_set, info.name) + (banner(caveat) if caveat else "") + folded(FIGURES, meaning))
    return unasked(body, scope)


def other_panel(a: Attribution, group_set: GroupSet, info: MethodInfo, *, scope: Scope | None = None) -> Html:
    """One line with the ranks by a method, which unfolds to its bars and figures. Out of scope, without the ranks."""
    body = note(info.note) + bars(a, group_set, info.name) + scores_html(a, group_set, info.name)
    ranks = "" if is_out(scope) else sentences.strip(a, group_set)
    name = Html(f"<b>{safe(info.name)}</b> <span>{safe(ranks)}</span>")
    return folded(name, body, css="guda-strip")


def scope_html(answer: Answer) -> Html:
    """What is said of the scope of an upload beside its picture; "" where the headline says it."""
    scope = answer.scope
    if scope is None or answer.query.file_hash is None or scope.verdict == "out of scope":
        return Html()
    return note(sentences.scope_note(scope))
