"""Values that are not finite are refused at every door: weights, prompts, pictures in, every step, pictures out."""

from __future__ import annotations

import torch
from torch import Tensor

from guda_core.errors import ModelError

MEND = (
    "In half precision numbers overflow: set GUDA_DTYPE=float32 (or bfloat16), or `gpu_dtype: float32` in the model's "
    "card. In float32 the model's files are damaged: download it again."
)


def check_finite(x: Tensor, what: str) -> Tensor:
    """x itself. what: the subject of the sentence, e.g. "The encoded picture".

    Raises:
        ModelError: a value is infinite or not a number.
    """
    if not torch.isfinite(x).all():
        raise ModelError(f"{what} has values that are not finite. {MEND}")
    return x
