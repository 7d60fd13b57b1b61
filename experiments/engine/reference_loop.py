"""How version 0.1 scored: the loop that the engine is compared with. It makes the noise anew for every model, every
draw of every group, in batches of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.condition import Condition
from guda_core.records import Query

BATCH, PER_PASS = 32, 4


@torch.no_grad()
def kl_values(
    model: BaseModel, latent: Tensor, condition: Condition, draws: likelihood.Draws, columns: Sequence[int]
) -> np.ndarray:
    """KL_t of the model as it is now, (K, len(columns)) float64, nats."""
    w = likelihood.kl_weights(model.prediction)
    pairs = [(k, j) for j in columns for k in range(len(draws.strata))]
    out = np.empty((len(draws.strata), len(columns)))
    shape = tuple(latent.shape[1:])
    for i in range(0, len(pairs), BATCH):
        part = pairs[i : i + BATCH]
        t = torch.tensor([int(draws.t[k, j]) for k, j in part])
        eps = torch.stack([draws.noise(shape, k, j) for k, j in part])
        x_0 = latent.expand(len(part), *shape)
        x_t = model.schedule.add_noise(x_0, eps, t)
        output = model.predict(x_t.to(model.device), t.to(model.device), condition.expand(len(part)))
        error = model.prediction.target(x_0, eps, t) - output.float().cpu()
        values = w[t] * error.square().sum(dim=(1, 2, 3)).double()
        for (k, j), v in zip(part, values.tolist(), strict=True):
            out[k, columns.index(j)] = v
    return out


def drops(
    model: BaseModel,
    query: Query,
    groups: Sequence[str],
    without: Callable[[str], AbstractContextManager[None]],
    *,
    draws: int,
    strata: int = 24,
    offset: Mapping[str, float] | None = None,
) -> tuple[dict[str, likelihood.Estimate], int]:
    """(group -> its score, forward passes) of one picture."""
    cut = likelihood.make_strata(model.schedule, strata)
    made = likelihood.draw_times(query.image_hash, cut, draws)
    condition = model.embed([query.prompt])
    full, kl = np.empty((strata, 0)), {g: np.empty((strata, 0)) for g in groups}
    for j in range(0, draws, PER_PASS):
        columns = list(range(j, min(j + PER_PASS, draws)))
        full = np.hstack([full, kl_values(model, query.latent, condition, made, columns)])
        for g in groups:
            with without(g):
                kl[g] = np.hstack([kl[g], kl_values(model, query.latent, condition, made, columns)])
    found = {g: likelihood.elbo_drop(full=full, without=v, strata=cut) for g, v in kl.items()}
    scores = {g: e.plus((offset or {}).get(g, 0.0)) for g, e in found.items()}
    return scores, (1 + len(groups)) * strata * draws
