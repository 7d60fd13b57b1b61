"""The app on this machine: `python app.py`. GUDA_HOST, GUDA_PORT and GUDA_MODEL choose address, port and model."""

from __future__ import annotations

import logging
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported


def main() -> None:
    """Load the model, build the page and serve it until interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

    from guda_core.pipeline import load_service
    from guda_core.ui import build_ui, launch_options

    host, port = os.environ.get("GUDA_HOST", "127.0.0.1"), int(os.environ.get("GUDA_PORT", "7860"))
    build_ui(load_service()).launch(server_name=host, server_port=port, **launch_options())


if __name__ == "__main__":
    main()
