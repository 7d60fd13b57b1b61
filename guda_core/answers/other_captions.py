"""What a picture's other captions gave, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from guda_core.answers import sentences
from guda_core.answers.markup import Html, folded, heading, note, table
from guda_core.answers.verdict import is_out
from guda_core.records import GroupSet, Scope, Tried

TITLE = "Other captions"
GIVEN, BEST, NONE = "the caption given", "the best caption that CLIP finds", "no caption"


def captions_html(tried: Sequence[Tried], group_set: GroupSet, scope: Scope | None, method: str) -> Html:
    """The first group under each caption that was tried; "" where none was. Out of scope, it is folded away. method:
    the name of the one that was asked."""
    if not tried:
        return Html()
    rows = []
    for t in tried:
        first = t.answer.ranked()[:1]
        score = t.answer.groups[first[0]] if first else None
        figure = sentences.score(score, t.answer.unit) if score else "-"
        span = sentences.interval(score, t.answer.unit) if score else "-"
        rows.append((t.label, t.caption or "-", sentences.first_of(t.answer, group_set), figure, span))
    head = ("Tried", "Caption", "First group", f"Score ({tried[0].answer.unit})", "95% interval")
    said = sentences.captions_agree([t.answer for t in tried], group_set)
    body = table(f"The first group under each caption, by {method}", head, rows, numbers="...nn")
    if is_out(scope):
        return folded(TITLE, note(said, f"All by {method}.") + body, css="guda-out")
    return Html(heading(TITLE) + note(said, f"All by {method}.") + body)
