"""Values that are not finite are refused at every door: weights, prompts, pictures in, every step, pictures out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guda_core.errors import ModelError

MEND = (
    "In half precision numbers overflow: set GUDA_DTYPE=float32 (or bfloat16), or `gpu_dtype: float32` in the model's "
    "card. In float32 the model's files are damaged: download it again."
)


def is_finite(x: Tensor) -> bool:
    """Whether every value of x is finite. On a CPU by its least and largest value, which are NaN where one is: many
    times as fast as `torch.isfinite`, which makes tensors of x's size."""
    x = x.detach().float() if x.is_floating_point() and x.dtype.itemsize == 1 else x.detach()
    if x.device.type != "cpu" or not x.is_floating_point() or not x.numel():
        return bool(torch.isfinite(x).all())
    least, largest = torch.aminmax(x)
    return -math.inf < least.item() and largest.item() < math.inf


def check_finite(x: Tensor, what: str) -> Tensor:
    """x itself. what: the subject of the sentence, e.g. "The encoded picture".

    Raises:
        ModelError: a value is infinite or not a number.
    """
    if not is_finite(x):
        raise ModelError(f"{what} has values that are not finite. {MEND}")
    return x
