"""HTML as a component of the page."""

from __future__ import annotations

from typing import Any

import gradio as gr

# Options of an event that computes nothing, and of one whose last press counts: by gradio's default, what is pressed or
# chosen while the answer to the one before is on its way is lost.
QUICK: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
LATEST: dict[str, Any] = {**QUICK, "trigger_mode": "always_last"}
BUSY = -1  # in place of a row's number: the first screen computes, so that no other answer is opened there
# A press on a row is told with the row's number.
ROWS = f"""element.addEventListener("click", (event) => {{
    const button = event.target.closest("tr, li")?.querySelector("[data-row]");
    const busy = document.querySelector("#guda-cancel:not(:disabled)");
    if (button) trigger("click", {{ row: busy ? {BUSY} : Number(button.dataset.row) }});
}});"""
OPENED = (  # on a phone the answer stands below the form; who came by keyboard goes on from the answer
    "() => { setTimeout(() => { const answer = document.getElementById('guda-answer'); "
    "if (answer.offsetParent === null || document.querySelector('#guda-cancel:not(:disabled)')) return; "
    "if (innerWidth < 768) answer.scrollIntoView(); else scrollTo(0, 0); "
    "if (document.activeElement === document.body) { answer.tabIndex = -1; answer.focus({preventScroll: true}); } "
    "}, 100); return []; }"
)


def block(value: str = "", **more: Any) -> gr.HTML:
    """An HTML component styled by our own CSS alone."""
    return gr.HTML(value, apply_default_css=False, padding=False, **more)


def rows_block() -> gr.HTML:
    """HTML whose rows (`tr` or `li` with an element that has `data-row`) can be pressed: its click tells `row`."""
    return block(elem_classes="guda-maybe guda-rows", js_on_load=ROWS)
