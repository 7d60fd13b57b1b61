"""Compiled forward passes for long trainings: the same weights up to rounding, in less time.

Compiling takes minutes the first time and needs a C++ compiler: it is asked for (`GUDA_COMPILE=1`), never assumed.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable

import torch
from torch import nn

log = logging.getLogger(__name__)


def asked() -> bool:
    """Whether GUDA_COMPILE asks for compiled trainings."""
    return os.environ.get("GUDA_COMPILE", "") not in ("", "0")


def forward_of(module: nn.Module) -> Callable[..., object]:
    """The module's forward pass, compiled for fixed shapes where `asked` and a C++ compiler is found; else the module.

    Parameters stay the module's own: optimiser, EMA and checkpoints see no difference.
    """
    if not asked():
        return module
    if not torch.cuda.is_available() and not (shutil.which("g++") or shutil.which("clang++")):
        log.warning("GUDA_COMPILE is set, but no C++ compiler (g++ or clang++) is found: training without it.")
        return module
    return torch.compile(module, dynamic=False)
