"""Targets of unlearning that were tried and not adopted, as pure functions. What came of them: docs, results of tuning.

ascent   eps_full(x_t, t, c_f) + s (eps_full(x_t, t, c_f) - eps)
shift    eps_full(x_t, t) + the change of the smoothed posterior mean when the group is removed (unconditional)
capped   eps + d min(1, sqrt(2 kl_cap) / ||d||), d = target - eps: ReTrack's trust region
less the style, between: of the empty prompt (see there)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guda_core.unlearning.losses import retrack_target


def ascent_target(eps_full: Tensor, eps: Tensor, *, strength: float) -> Tensor:
    """The full model's estimate, moved away from the true noise.

    The gradient of ||student - target||^2 where the student is still the full model is -strength times that of the
    training loss ||student - eps||^2: gradient ascent (NegGrad, Golatkar et al. 2020), but towards a fixed point, so
    that it does not run away. To first order it is the influence of the pictures on the model.
    """
    return eps_full + strength * (eps_full - eps)


def shift_target(
    eps_full: Tensor, x_t: Tensor, retained: Tensor, forgotten: Tensor, alpha_bar: Tensor, *, bandwidth: float
) -> Tensor:
    """The full model's estimate, moved by what removing the group does to the posterior mean of eps.

        eps_full(x_t, t) + eps_bar(x_t; retained) - eps_bar(x_t; retained and forgotten)

    Both means are `retrack_target`'s with the same bandwidth. Were the full model the exact denoiser of the smoothed
    training set, this would be the exact denoiser of the smoothed retained set; as it is, the model keeps its own way
    of generalising, and the move is bounded as t falls. Shapes as in `retrack_target`; retained and forgotten may be
    (R, C, h, w) and (F, C, h, w).
    """
    everything = torch.cat([retained, forgotten], dim=retained.dim() - 4)
    without, with_it = (retrack_target(x_t, of, alpha_bar, bandwidth=bandwidth) for of in (retained, everything))
    return eps_full + without - with_it


def capped(target: Tensor, eps: Tensor, *, kl_cap: float) -> Tensor:
    """The target with its correction of the true noise cut to a norm of sqrt(2 kl_cap), picture by picture.

    target, eps: (B, C, h, w). It caps the weighted mean of the corrections once.
    """
    d = target - eps
    norm = d.flatten(1).norm(dim=1)[:, None, None, None]  # (B, 1, 1, 1)
    return eps + d * (math.sqrt(2 * kl_cap) / norm.clamp_min(1e-12)).clamp_max(1.0)


def style_shift_target(eps_empty: Tensor, eps_prompt: Tensor, eps_anchor: Tensor, *, push: float) -> Tensor:
    """The unconditional estimate less a style: what the forgotten caption adds to the anchor's, 1 + push times.

    Both captions name the same object, so that it cancels; eps_empty keeps what x_t alone tells of it. All have one
    shape.
    """
    return eps_empty - (1 + push) * (eps_prompt - eps_anchor)


def between_target(eps_empty: Tensor, eps_prompt: Tensor, eps_anchor: Tensor) -> Tensor:
    """A third of the way from the unconditional estimate to the anchor's, and a third of the style's shift.

    All have one shape.
    """
    return eps_empty + ((eps_anchor - eps_empty) + (eps_anchor - eps_prompt)) / 3
