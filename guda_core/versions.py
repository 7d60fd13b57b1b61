"""What every record says of its making: the versions that a score depends on, and the date."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version

from guda_core import __version__

PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python, this project and the libraries that a score depends on."""
    return {"guda_core": __version__, "python": platform.python_version(), **{p: version(p) for p in PACKAGES}}


def today() -> str:
    """The date and time now, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
