"""`guda app`: the page, on this machine or as a Space. `app.py` at the top of the repository does the same."""

from __future__ import annotations

import logging
import os


def address() -> tuple[str, int]:
    """Host and port: GUDA_HOST and GUDA_PORT, else what a Space sets, else this machine alone on 7860."""
    host = os.environ.get("GUDA_HOST") or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    return host, int(os.environ.get("GUDA_PORT") or os.environ.get("GRADIO_SERVER_PORT") or "7860")


def start() -> None:
    """Start the page: load the model, build the page and serve it until interrupted."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if os.environ.get("SPACES_ZERO_GPU"):
        import spaces  # noqa: F401  # pyright: ignore[reportMissingImports]  (before torch, as ZeroGPU asks)

    from guda_core.local import load_service
    from guda_core.ui import build_ui, launch_options
    from guda_core.zero_gpu import on_zero_gpu

    host, port = address()
    build_ui(on_zero_gpu(load_service())).launch(server_name=host, server_port=port, **launch_options())
