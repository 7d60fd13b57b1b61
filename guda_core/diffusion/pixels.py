"""Pixels and the numbers that models see: x = pixels / 127.5 - 1, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from guda_core.diffusion.finite import check_finite


def to_unit(pixels: np.ndarray | Tensor) -> Tensor:
    """(H, W, 3) or (B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1], on the CPU."""
    x = torch.tensor(np.ascontiguousarray(pixels)) if isinstance(pixels, np.ndarray) else pixels  # copied
    # a single picture gets its batch last: torch then lays it out, and sums it up, as version 0.1 did, bit for bit
    x = x.permute(2, 0, 1)[None] if x.dim() == 3 else x.permute(0, 3, 1, 2)  # (B, 3, H, W)
    return x.float() / 127.5 - 1.0


def to_pixels(x: Tensor) -> np.ndarray:
    """(B, C, H, W) in [-1, 1], C of one or three -> (B, H, W, 3) uint8; what is beyond the range is cut off.

    Raises:
        ModelError: a value is not finite, so there is no picture.
    """
    check_finite(x, "The decoded picture")
    y = ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().expand(-1, 3, -1, -1)
    return np.ascontiguousarray(y.permute(0, 2, 3, 1).cpu().numpy())
