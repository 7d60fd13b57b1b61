"""Libraries that keep off a terminal which has bars and messages of its own."""

from __future__ import annotations

import logging
import os


def quieten() -> None:
    """Keep the libraries' progress bars and loading reports off the terminal; they are imported here."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else its import reports that torchvision is missing

    from guda_core.diffusion.unet_family import quieten_libraries

    quieten_libraries()


def unadvised() -> None:
    """Nothing here needs torchvision, so `transformers` does not advise to install it; all else that it says stays."""
    said = logging.getLogger("transformers.utils.import_utils")
    if _is_wanted not in said.filters:
        said.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return "requires torchvision" not in record.getMessage()
