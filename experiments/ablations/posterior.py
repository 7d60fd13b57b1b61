"""Anchors by what the noised picture itself tells of its style: a diffusion classifier over the retained groups.

    p(s | x_t, content) = softmax_s(-surprise_s(x_t) / temperature),   surprise_s = sum_{u > t} KL_u(s)      nats

(Li et al. 2023, arXiv 2303.16203, that sees the noised picture alone.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from guda_core.data.captions import Captioner
from guda_core.data.dataset import Item
from guda_core.diffusion import likelihood
from guda_core.diffusion.base_model import BaseModel

STRATA = 8  # of timesteps; in each the posterior of the styles is another


@torch.no_grad()
def style_surprise(
    model: BaseModel, captioner: Captioner, own: Sequence[Item], latents: Tensor, forget: str, strata: likelihood.Strata
) -> Tensor:
    """-log p(x_t | style, content) of the forgotten group's pictures in nats, but for what all styles share: (N_own, K,
    G) float64, infinite for the forgotten style; t in the k-th of the strata.

    own: the forgotten group's pictures; latents: theirs, (N_own, C, h, w).

    The sum over s > t of KL_s, one timestep drawn in each stratum with the same noise for all styles.
    """
    ids = list(captioner.group_set.groups)
    g = torch.Generator().manual_seed(0)
    kl = np.zeros((len(own), len(strata), len(ids)))
    for n, item in enumerate(own):
        draws = likelihood.draw_times(item.id, strata, 1)
        for k, style in enumerate(ids):
            if style != forget:
                cond = model.embed([captioner.anchor(item, style, g)])
                values = likelihood.kl_values(model, latents[n : n + 1], cond, draws, range(1))
                kl[n, :, k] = values[:, 0] * strata.sizes
    later = np.flip(np.cumsum(np.flip(kl, axis=1), axis=1), axis=1) - kl / 2  # half of t's own stratum lies above t
    later[:, :, ids.index(forget)] = np.inf
    return torch.from_numpy(later)


def style_posterior(surprise: Tensor, temperature: float) -> Tensor:
    """p(style | x_t, content) over the retained styles, all equally likely beforehand, float32 as `style_surprise`.

    What a model that never saw the group's words or pictures should answer under them is, by Bayes, the mean of its
    estimates for the other styles, weighted by this. The temperature, in nats, is 1 for a full model that knows its
    styles exactly. Over hundreds of nats between styles that is one style alone; a retrained model is less sure, and
    nearest to the mean with about 100 (`experiments.ablations.targets`).
    """
    return torch.softmax(-surprise / temperature, dim=2).float()
