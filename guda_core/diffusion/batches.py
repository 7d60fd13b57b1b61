"""How many pictures a forward pass of scoring holds: what the device and the type are fast with."""

from __future__ import annotations

import math

import torch

from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.memory import free_bytes
from guda_core.machine import memory_left

CPU = {torch.float32: 64}  # beyond which a batch gains nothing on two cores (`experiments.engine`); of other types:
CPU_COARSE = 144
LEAST, MOST = 1, 256  # on a GPU
HELD = 64  # numbers that a pass holds at most for each channel of a place, about: on a CPU 29 to 57 were measured
UNASKED = 512 * 2**20  # bytes of a pass that every machine has: up to there a batch does not depend on the memory


def fitting_batch(model: BaseModel) -> int:
    """The batch for this model where it runs.

    On a GPU: what a quarter of the free memory holds, at `HELD` numbers of the model's type for each place and each
    channel of the network's first level. That is a rough estimate; a batch that does not fit is halved
    (`memory.in_batches`). Elsewhere: what is fast, and `at_most`.
    """
    if model.device.type != "cuda":
        return at_most(CPU.get(model.dtype, CPU_COARSE), model)
    return int(min(MOST, max(LEAST, free_bytes(model.device) // 4 // _picture_bytes(model))))


def at_most(batch: int, model: BaseModel) -> int:
    """So many pictures, or as many as a quarter of the main memory that is free now holds, by the same estimate. Where
    main memory runs out, Linux ends the process, and nothing can be halved.

    A GPU says by itself that memory ran out: there it is `batch`. So it is where that takes no more than `UNASKED`,
    as with the included model, whose scores must be the same bits everywhere.
    """
    if model.device.type == "cuda":
        return batch
    one = _picture_bytes(model)
    if batch * one <= UNASKED:
        return batch
    return min(batch, max(LEAST, max(UNASKED, memory_left() // 4) // one))


def _picture_bytes(model: BaseModel) -> int:
    """Bytes that a pass holds for each picture, about."""
    return HELD * _numbers(model) * torch.finfo(model.dtype).bits // 8


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
