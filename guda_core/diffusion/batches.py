"""How many pictures a forward pass of scoring holds: what the device and the type are fast with."""

from __future__ import annotations

import math

import torch

from guda_core.diffusion.base_model import BaseModel

CPU = {torch.float32: 64}  # beyond which a batch gains nothing on two cores (`experiments.engine`); of other types:
CPU_COARSE = 144
LEAST, MOST = 4, 256  # on a GPU


def fitting_batch(model: BaseModel) -> int:
    """The batch for this model where it runs.

    On a GPU: what a quarter of the free memory holds, at 64 numbers of the model's type for each place of a latent and
    each channel of the network's widest layer. That is a rough estimate; a batch that does not fit is halved
    (`memory.in_batches`).
    """
    if model.device.type != "cuda":
        return CPU.get(model.dtype, CPU_COARSE)
    free, _ = torch.cuda.mem_get_info(model.device)
    widest = max((p.shape[0] for p in model.network.parameters()), default=1)
    one = 64 * widest * math.prod(model.latent_shape[1:]) * torch.finfo(model.dtype).bits // 8
    return int(min(MOST, max(LEAST, free // 4 // one)))
