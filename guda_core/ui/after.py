"""What can be done with an answer that stands there: the map of any group, and the earlier answers of this visit."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from guda_core.answers.markup import note, status_html
from guda_core.answers.shown import shown_html
from guda_core.service import Service
from guda_core.ui import words
from guda_core.ui.answer import Answer
from guda_core.ui.blocks import BUSY, LATEST, OPENED, QUICK
from guda_core.ui.callbacks import Runs, Update, explained
from guda_core.ui.layout import Screen
from guda_core.ui.more_maps import one_map
from guda_core.ui.past import Past, added, past_html


class After:
    """The functions behind the drop-down of maps and the list of answers, for one service and one screen."""

    def __init__(self, service: Service, screen: Screen, runs: Runs) -> None:
        self.service, self.screen, self.runs = service, screen, runs

    def ask(self, group: Any, turn: Any) -> Any:
        """What asks for the map of the chosen group. A drop-down tells a choice twice, so that the same turn asks once;
        and it tells None when it is left with no choice, which asks for nothing."""
        return f"{turn} {group}" if group else gr.skip()

    def map(self, answer: Answer | None, wanted: str | None) -> Iterator[Update]:
        """Make the map of a group and show it before the others. wanted: as `ask` gave it."""
        s, group = self.screen, (wanted or "").partition(" ")[2]
        try:
            for item in one_map(self.service, answer, group):
                if isinstance(item, tuple):
                    found, said = item
                    pictures = shown_html(found.shown, self.service.group_set, self.service.methods())
                    shown = {s.answer: found, s.shown: pictures}
                    yield {**shown, s.status: status_html(words.DONE), s.mapped: note(said)}
                else:
                    yield {s.status: status_html(words.MAPPING, item)}
        except Exception as e:
            yield {s.status: status_html(""), s.mapped: note(explained(e))}

    def mapped(self) -> list[Any]:
        """What the map changes."""
        s = self.screen
        return [s.answer, s.shown, s.status, s.mapped]

    def keep(self, answer: Answer | None, past: tuple[Past, ...] | None) -> list[Any]:
        """Add the answer that now stands there to those of this visit, if it is whole."""
        kept = added(past or (), answer)
        return [kept, past_html(self.service, kept)]

    def brought(self, event: gr.EventData, past: tuple[Past, ...] | None) -> Update:
        """Show one of the answers again."""
        s, known = self.screen, past or ()
        row = event._data.get("row") if isinstance(event._data, dict) else None
        if row == BUSY:
            return {s.mapped: gr.skip()}
        wanted = next((p.answer for p in known if p.number == row), None)
        if wanted is None:
            return {s.status: status_html(words.PICTURE_GONE)}
        return {**self.runs.restored(wanted), s.mapped: "", s.group: None, s.turn: secrets.token_hex(4)}

    def kept(self, ends: Callable[..., Any]) -> Any:
        """Where a run ends so, as by its `then` or `failure`, its answer is kept. What frees the screen follows that
        event: else the next press takes the answer away before it is kept."""
        s = self.screen
        return ends(self.keep, [s.answer, s.past], [s.past, s.past_rows], **QUICK)


def connect_past(after: After) -> None:
    """Bring an answer back when it is pressed."""
    s = after.screen
    shown = s.past_rows.click(after.brought, s.past, [*s.outputs(), s.mapped, s.group, s.turn], **LATEST)
    shown.then(None, None, None, js=OPENED, **QUICK)
