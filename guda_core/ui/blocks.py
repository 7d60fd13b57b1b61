"""HTML as a component of the page."""

from __future__ import annotations

from typing import Any

import gradio as gr

# A press on a row is told with the row's number. While the first screen computes, no other answer is opened there.
ROWS = """element.addEventListener("click", (event) => {
    const button = event.target.closest("tr, li")?.querySelector("[data-row]");
    const busy = document.querySelector("#guda-cancel:not(:disabled)");
    if (button && !busy) trigger("click", { row: Number(button.dataset.row) });
});"""
OPENED = (  # on a phone the answer stands below the form
    "() => { setTimeout(() => { if (innerWidth < 768) document.getElementById('guda-answer').scrollIntoView(); "
    "else scrollTo(0, 0); }, 100); return []; }"
)


def block(value: str = "", **more: Any) -> gr.HTML:
    """An HTML component styled by our own CSS alone."""
    return gr.HTML(value, apply_default_css=False, padding=False, **more)


def rows_block() -> gr.HTML:
    """HTML whose rows (`tr` or `li` with an element that has `data-row`) can be pressed: its click tells `row`."""
    return block(elem_classes="guda-maybe guda-rows", js_on_load=ROWS)
