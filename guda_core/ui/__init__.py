"""The user interface. It knows a `Service` and nothing of models; only this package and app.py import gradio."""

from __future__ import annotations

from typing import Any

import gradio as gr

from guda_core.imaging import MAX_BYTES
from guda_core.pipeline import Service
from guda_core.ui import words
from guda_core.ui.callbacks import connect
from guda_core.ui.layout import CSS, draw, make_theme

KEPT = 3600  # seconds: how often the upload cache is swept, and how old a file in it may get
QUEUE = 32  # visitors waiting; the next one is told to come back


def build_ui(service: Service) -> gr.Blocks:
    """The app for a service. Launch it with `launch_options()`: in gradio 6 theme and CSS belong to the launch."""
    with gr.Blocks(title=words.TITLE, analytics_enabled=False, fill_width=True, delete_cache=(KEPT, KEPT)) as demo:
        connect(demo, draw(service), service)
    demo.queue(default_concurrency_limit=1, max_size=QUEUE, api_open=False)
    return demo


def launch_options() -> dict[str, Any]:
    """Keyword arguments of `launch` that every server of this app, also one in a test, is started with."""
    return {
        "theme": make_theme(),
        "css": CSS,
        "max_file_size": MAX_BYTES,
        "show_error": True,
        "run_history": False,
        "ssr_mode": False,
        "footer_links": [],
    }
