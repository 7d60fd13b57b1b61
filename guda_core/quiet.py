"""Libraries that keep off a terminal which has bars and messages of its own."""

from __future__ import annotations

import os


def quieten() -> None:
    """Keep the libraries' progress bars and loading reports off the terminal; they are imported here."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else its import reports that torchvision is missing

    from guda_core.diffusion.unet_family import quieten_libraries

    quieten_libraries()
