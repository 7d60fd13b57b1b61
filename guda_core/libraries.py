"""How a program or a worker sets up the libraries before it loads a model. A library's user has set them up."""

from __future__ import annotations

import os

from guda_core.machine import bound_threads


def set_up_libraries() -> None:
    """Keep the libraries' progress bars and loading reports off a terminal which has bars and messages of its own, and
    torch from more threads than there are cores for this process; they are imported here."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else its import reports that torchvision is missing

    from guda_core.diffusion.opening import quieten_libraries

    quieten_libraries()
    bound_threads()
