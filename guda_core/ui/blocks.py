"""HTML as a component of the page."""

from __future__ import annotations

from typing import Any

import gradio as gr


def block(value: str = "", **more: Any) -> gr.HTML:
    """An HTML component styled by our own CSS alone."""
    return gr.HTML(value, apply_default_css=False, padding=False, **more)
