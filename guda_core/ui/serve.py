"""Launches the page as every server of this app is launched, also one in a test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio import http_server
from gradio.exceptions import ServerFailedToStartError

from guda_core.errors import OptionError
from guda_core.proxies import without_proxies
from guda_core.ui.uploads import names_fitted


class _Patient(http_server.Server):
    """gradio gives its server five seconds to begin; this one waits for as long as the server lives."""

    def run_in_thread(self) -> None:
        try:
            super().run_in_thread()
        except ServerFailedToStartError:
            while not self.started and self.thread.is_alive():
                time.sleep(0.01)
            if not self.started:
                raise


@contextmanager
def _patience() -> Iterator[None]:
    theirs = http_server.Server
    http_server.Server = _Patient
    try:
        yield
    finally:
        http_server.Server = theirs


def launch(demo: gr.Blocks, host: str, port: int, **options: Any) -> tuple[gr.Blocks, str]:
    """Serve a page in a thread of its own; the page and its address.

    host: a name or an address, IPv6 without brackets. options: `launch_options()`.

    Raises:
        OptionError: the port was taken meanwhile.
    """
    names_fitted()
    name = f"[{host}]" if ":" in host else host
    try:
        with without_proxies(), _patience():
            _, url, _ = demo.launch(
                server_name=name,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                _frontend=False,  # do not ask the page whether it is there within three seconds
                **options,
            )
    except OSError as e:
        raise OptionError(f"Nothing can be served at {name}:{port}: it is in use. Set GUDA_PORT to another one.") from e
    return demo, url
