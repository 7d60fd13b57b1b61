"""A picture noised up to a middle level and drawn again from there, by any family: deterministic steps of DDIM
(Song et al. 2021), in the SNR alone:

    x_s = alpha_s x0_hat + sigma_s eps_hat          x0_hat, eps_hat of the network's answer at x_t (`prediction`)

What such a picture keeps is what the noise left; the rest is what the model makes of it (SDEdit, Meng et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.finite import check_finite
from guda_core.diffusion.schedule import spread


def times(steps: int, level: float, total: int) -> list[int]:
    """The timesteps of a redrawing, falling: from `level` of the `total` steps to step 0, at most `steps` of them."""
    start = min(total - 1, max(1, round(level * total) - 1))
    return sorted({round(t) for t in np.linspace(0, start, steps)}, reverse=True)


def redraw(
    model: BaseModel, latent: Tensor, noise: Tensor, condition: Condition, *, level: float, steps: int
) -> Iterator[np.ndarray | None]:
    """None after each step but the last, then the picture (1, H, W, 3) uint8.

    latent, noise: (1, C, h, w) float32 on the CPU. condition: a batch of one. level: in (0, 1], the share of the noise
    steps that the picture is noised up to.

    Raises:
        ModelError: a value is not finite, so there is no picture.
    """
    s, at = model.schedule, times(steps, level, len(model.schedule))
    x = s.add_noise(latent, noise, torch.tensor(at[:1])).to(model.device)
    for i, now in enumerate(at):
        t = torch.tensor([now], device=model.device)
        with torch.no_grad():
            output = model.predict(x, t, condition)
            x_0 = model.prediction.x0_hat(output, x, t)
            if i + 1 < len(at):
                eps, after = model.prediction.eps_hat(output, x, t), t * 0 + at[i + 1]
                x_0 = spread(s.alpha, after, x_0) * x_0 + spread(s.sigma, after, x_0) * eps
            x = check_finite(x_0, f"Step {i + 1} of {len(at)} of the drawing")
        yield None if i + 1 < len(at) else model.decode(x)
