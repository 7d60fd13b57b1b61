"""The user interface. It knows a `Service` and nothing of models; only this package and app.py import gradio."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from guda_core.answers.markup import Html, banner, safe
from guda_core.service import Service
from guda_core.ui import (
    about,
    benchmarks,
    compare,
    endpoints,
    inspect,
    report_screens,
    results_screen,
    several_screen,
    words,
)
from guda_core.ui.blocks import block
from guda_core.ui.card import Card
from guda_core.ui.connect import connect
from guda_core.ui.gate import Gate
from guda_core.ui.layout import draw
from guda_core.ui.several import most
from guda_core.ui.sweep import SESSIONS, own_files_stay, sweeping
from guda_core.ui.theme import CSS, HEAD, make_theme
from guda_core.ui.uploads import Page

log = logging.getLogger(__name__)
MOST_SENT = 25 * 2**20  # bytes of an upload, in the page's megabytes; the door itself takes a little less
AROUND = 2**20  # bytes of an upload beside its files
KEPT = 3600  # seconds: how often the upload cache is swept, and how old a file in it may get
QUEUE = 32  # visitors waiting; the next one is told to come back
NO_MCP = 'GUDA_MCP=1 needs one more package: pip install "gradio[mcp]". The app starts without MCP tools.'


def build_ui(service: Service) -> gr.Blocks:
    """The app for a service. Launch it with `launch_options()`: in gradio 6 theme and CSS belong to the launch.

    Raises:
        OptionError: GUDA_RESULTS names a folder without results, or GUDA_MOST_PICTURES is no whole number from 1 on.
    """
    results = results_screen.given()
    title = f"{service.model_name}: {words.TITLE}"
    with Page(title=title, analytics_enabled=False, fill_width=True, delete_cache=(KEPT, KEPT)) as demo:
        block(_head(service))
        if service.banner:
            block(banner(service.banner))
        with gr.Tabs() as tabs:
            with gr.Tab("Attribute", id=0):
                screen = draw(service)
            with gr.Tab(several_screen.TAB):
                pictures = several_screen.draw()
            with gr.Tab("Compare") as compare_tab:
                compared = compare.draw()
            with gr.Tab("Evidence") as tab:
                report = report_screens.draw()
                inspected = inspect.draw(tab)
            with gr.Tab("Benchmarks"):
                benchmarks.draw(service)
            if results is not None:
                with gr.Tab(results_screen.TAB) as tab:
                    results_screen.connect(results_screen.draw(results), results, tab)
            with gr.Tab("Style groups") as tab:
                about.draw_groups(service, tab)
            with gr.Tab("Limits"):
                about.draw_limits(service)
        runs = connect(demo, screen, service)
        several_screen.connect(pictures, service, screen, tabs)
        compare.connect(compare_tab, compared, service, screen.answer, runs)
        inspect.connect(inspected, service, screen.answer, runs)
        report_screens.connect(report, service, screen.answer, screen.turn, [screen.says, screen.picture])
        endpoints.connect(screen, service)
    demo.space_id = None  # a page that knows its Space loads fonts from Google and a header from the hub
    demo.queue(default_concurrency_limit=1, max_size=QUEUE, api_open=False)
    own_files_stay(demo)
    return demo


def _head(service: Service) -> Html:
    """What the page is about, and which model answers."""
    about = f"{safe(words.PURPOSE)} Here: <b>{safe(service.model_name)}</b>."
    return Html(f'<div class="guda-title"><h1>{safe(words.TITLE)}</h1><p>{about}</p></div>')


def wants_mcp() -> bool:
    """Whether GUDA_MCP=1 asks for MCP tools and the package for them is there; says so when it is not."""
    if os.environ.get("GUDA_MCP") != "1":
        return False
    if find_spec("mcp") is None:
        log.error(NO_MCP)
        return False
    return True


def launch_options() -> dict[str, Any]:
    """Keyword arguments of `launch` that every server of this app, also one in a test, is started with."""
    gate = Middleware(Gate, most=most() * MOST_SENT + AROUND)
    return {
        "theme": make_theme(),
        "css": CSS,
        "head": HEAD,
        "max_file_size": MOST_SENT,
        "show_error": True,
        "run_history": False,
        "enable_monitoring": False,
        "state_session_capacity": SESSIONS,
        "ssr_mode": False,
        "footer_links": [],
        "mcp_server": wants_mcp(),
        "app_kwargs": {"middleware": [gate, Middleware(Card)], "lifespan": sweeping},
    }
