"""How many pictures a forward pass of scoring holds: what the device and the type are fast with."""

from __future__ import annotations

import math

import torch

from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.memory import free_bytes

CPU = {torch.float32: 64}  # beyond which a batch gains nothing on two cores (`experiments.engine`); of other types:
CPU_COARSE = 144
LEAST, MOST = 1, 256  # on a GPU
HELD = 64  # numbers that a pass holds at most for each channel of a place, about


def fitting_batch(model: BaseModel) -> int:
    """The batch for this model where it runs.

    On a GPU: what a quarter of the free memory holds, at `HELD` numbers of the model's type for each place and each
    channel of the network's first level. That is a rough estimate; a batch that does not fit is halved
    (`memory.in_batches`).
    """
    if model.device.type != "cuda":
        return CPU.get(model.dtype, CPU_COARSE)
    one = HELD * _numbers(model) * torch.finfo(model.dtype).bits // 8
    return int(min(MOST, max(LEAST, free_bytes(model.device) // 4 // one)))


def _numbers(model: BaseModel) -> int:
    """Places of a picture times their channels: of a UNet's first level, where there are most; of a transformer's
    tokens. Of other networks: places of the latent times the channels of the widest layer."""
    c, h, w = model.latent_shape
    config = getattr(model.network, "config", None) or {}
    if widths := config.get("block_out_channels"):
        return widths[0] * h * w
    heads, each = config.get("num_attention_heads"), config.get("attention_head_dim")
    if isinstance(heads, int) and isinstance(each, int):
        per_token = config.get("patch_size", 1) ** 2 * config.get("in_channels", c) / c  # FLUX packs its latents itself
        return math.ceil(heads * each * h * w / per_token)
    return max((p.shape[0] for p in model.network.parameters()), default=1) * h * w
