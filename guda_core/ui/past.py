"""The answers of one visit, newest first. Each comes back without computing. Few are kept, for this visit alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from guda_core.answers.markup import Html, chip_html, folded, note, safe, small_image
from guda_core.service import EFFORTS, Service
from guda_core.ui import words
from guda_core.ui.answer import Answer
from guda_core.ui.several import said_of

MOST, MOST_BYTES = 12, 32_000_000  # answers of one visit, and what they may take together


@dataclass(frozen=True)
class Past:
    """One answer of before. when: hour and minute in UTC. size: bytes of its arrays, about. number: its own within the
    visit, so that a press on a list that has changed since opens what it showed."""

    answer: Answer
    when: str
    size: int
    number: int

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same picture, drawn or of the same file, caption, methods and effort."""
        q = self.answer.query
        return q.image_hash, q.file_hash, q.prompt, self.answer.methods, self.answer.effort


def size_of(thing: Any) -> int:
    """Bytes of all arrays and tensors within records, mappings and sequences."""
    if hasattr(thing, "nbytes"):
        return int(thing.nbytes)
    if is_dataclass(thing):
        return sum(size_of(getattr(thing, f.name)) for f in fields(thing))
    if isinstance(thing, Mapping):
        return sum(size_of(v) for v in thing.values())
    if isinstance(thing, Sequence) and not isinstance(thing, str | bytes):
        return sum(size_of(v) for v in thing)
    return 0


def finished(answer: Answer | None) -> bool:
    """Whether the main method's answer is whole."""
    found = answer.found.get(answer.methods[0]) if answer is not None and answer.methods else None
    return found is not None and bool(found.groups) and found.progress >= 1


def _whole(answer: Answer) -> tuple[float, float, int, int]:
    """How much of an answer is there: methods, strip, maps, other captions."""
    strip = answer.shown.strip
    done = sum(a.progress for a in answer.found.values())
    return done, 0.0 if strip is None else strip.progress, len(answer.shown.where), len(answer.tried)


def added(kept: tuple[Past, ...], answer: Answer | None, now: datetime | None = None) -> tuple[Past, ...]:
    """With one answer more, which takes the place of an older one to the same question, unless it was stopped before it
    had as much; the oldest ones go where there are too many or they take too much."""
    if answer is None or not finished(answer):
        return kept
    number = 1 + max((p.number for p in kept), default=0)
    new = Past(answer, (now or datetime.now(UTC)).strftime("%H:%M"), size_of(answer), number)
    older = next((p for p in kept if p.key == new.key), None)
    if older is not None and _whole(older.answer) > _whole(answer):
        new = older
    out, room = [], MOST_BYTES
    for p in [new, *(p for p in kept if p.key != new.key)][:MOST]:
        room -= p.size
        if room < 0 and out:
            break
        out.append(p)
    return tuple(out)


def past_html(service: Service, kept: tuple[Past, ...]) -> Html:
    """A list of buttons, one an answer; "" for none."""
    if not kept:
        return Html()
    items = []
    for p in kept:
        v = said_of(service, p.answer)
        chips = " ".join(chip_html(c.text, c.kind) for c in v.chips[:1])
        about = f"{p.when} UTC, effort {EFFORTS[p.answer.effort].name}"
        if p.answer.query.prompt:
            about += f", {p.answer.query.prompt}"
        image = small_image(p.answer.query.pixels)
        items.append(
            f'<li><button type="button" class="guda-open" data-row="{p.number}">{image}'
            f"<span><b>{safe(v.headline)}</b> {chips}<br>{safe(about)}</span></button></li>"
        )
    count = "1 answer" if len(kept) == 1 else f"{len(kept)} answers"
    body = note(words.HISTORY.format(most=MOST)) + f'<ul class="guda-past">{"".join(items)}</ul>'
    return folded(f"This visit: {count}", body, css="guda-makers")
