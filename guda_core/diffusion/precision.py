"""The type that a model's weights run in: float32 on a CPU and the card's type on a GPU, unless GUDA_DTYPE says
otherwise.

bfloat16 is more than twice as fast where the processor multiplies it in hardware (AMX, AVX512-BF16), and slower where
it does not. What it does to scores is measured (`experiments.engine`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from guda_core.errors import OptionError

VARIABLE = "GUDA_DTYPE"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FASTEST = "fastest"  # bfloat16 on a CPU that has it in hardware, else the default


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Within the block this thread rounds numbers below 2^-126 to zero, with which a CPU is many times slower; after
    it, as before. Torch tells nobody whether it does so, but a product shows it."""
    before = bool(torch.tensor(1e-40) * 1.0 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 in hardware, as torch sees it."""
    checks = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return any(check() for check in checks if check is not None)


def chosen_dtype(device: torch.device) -> torch.dtype | None:
    """What GUDA_DTYPE asks for on this device; None: the default.

    Raises:
        OptionError: it names no such type.
    """
    name = os.environ.get(VARIABLE, "")
    if not name:
        return None
    if name == FASTEST:
        return torch.bfloat16 if device.type == "cpu" and has_fast_bfloat16() else None
    if name not in DTYPES:
        raise OptionError(f"{VARIABLE} must be one of {', '.join([*DTYPES, FASTEST])}, not '{name}'.")
    return DTYPES[name]


def mixed(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Within the block, layers of float32 weights compute in `dtype` where that is safe; nothing changes for
    float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
