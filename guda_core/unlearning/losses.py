"""Unlearning losses as pure functions of noise estimates: L = L_forget + lambda * L_preserve (arXiv 2601.22651).

Every forget loss compares the student's eps with a target that needs no gradient; targets differ by operator:

    guda_c   eps_full(x_t, t, c_a): the frozen full model under an anchor caption of a retained style (GUDA-C)
    retrack  eps_bar_t(x_t) = sum_r w_r (x_t - sqrt(ab_t) x_r) / sqrt(1 - ab_t),
             w_r = softmax_r(-||x_t - sqrt(ab_t) x_r||^2 / (2 (1 - ab_t))): the retained data's posterior mean (GUDA-U)
    shift    eps_full(x_t, t) + the change of that posterior mean when the group is removed (ours; see `shift_target`)
    ascent   eps_full(x_t, t, c_f) + s * (eps_full(x_t, t, c_f) - eps): gradient ascent on the forgotten pictures
    esd      eps_full(x_t, t, "") - s * (eps_full(x_t, t, c_f) - eps_full(x_t, t, "")) (Gandikota et al. 2023, eq. 4)

Unconditional models have no prompt c_f; their `esd` takes the estimate of a copy fine-tuned on the forgotten group in
its place (`unlearn_unconditional`).
"""

from __future__ import annotations

import math

import torch
from scipy import optimize
from torch import Tensor


def mean_square(student: Tensor, target: Tensor) -> Tensor:
    """Mean over all elements of the squared difference; no gradient flows into the target."""
    return (student - target.detach()).square().mean()


def anchor_probabilities(cosines: Tensor, *, beta: float, eta: float, exclude: int) -> Tensor:
    """pi(s) = (1 - eta) softmax(beta cos_s) + eta uniform over retained styles; the excluded (forgotten) style gets 0.

    cosines: (S,) similarity of the forgotten descriptors to each style's prototype. Returns (S,) that sums to 1.
    """
    keep = torch.ones_like(cosines, dtype=torch.bool)
    keep[exclude] = False
    soft = torch.where(keep, beta * cosines, -torch.inf).softmax(dim=0)
    uniform = keep.float() / keep.sum()
    return (1 - eta) * soft + eta * uniform


def retrack_target(x_t: Tensor, retained: Tensor, alpha_bar: Tensor, *, bandwidth: float = 0.0) -> Tensor:
    """Posterior mean of eps given x_t under the empirical distribution of the retained latents.

    x_t: (B, C, h, w); retained: (R, C, h, w) or per-query neighbours (B, K, C, h, w); alpha_bar: (B,) in (0, 1).
    bandwidth: h >= 0, in units of the latents. With h > 0 every retained latent stands for a Gaussian N(x_r, h^2 I)
    (a kernel density estimate), v = ab h^2 + 1 - ab:

        w_r = softmax_r(-||x_t - sqrt(ab) x_r||^2 / (2 v)),   eps_bar = sum_r w_r sqrt(1 - ab) (x_t - sqrt(ab) x_r) / v

    Weights are a softmax of log-densities (never exponentials of raw distances): far outliers cannot underflow to 0/0.
    Returns (B, C, h, w) in the dtype of x_t.
    """
    if retained.dim() == 4:
        retained = retained[None].expand(len(x_t), *retained.shape)
    ab = alpha_bar.to(x_t.dtype)
    v = ab * bandwidth**2 + (1 - ab)
    diff = x_t[:, None] - ab.sqrt()[:, None, None, None, None] * retained  # (B, R, C, h, w)
    log_w = -diff.flatten(2).square().sum(dim=2) / (2 * v[:, None])  # (B, R)
    w = log_w.softmax(dim=1)[:, :, None, None, None]
    return (w * diff).sum(dim=1) * ((1 - ab).sqrt() / v)[:, None, None, None]


NEAR = 64  # others that the likelihood of a picture is made of


def likely_bandwidth(latents: Tensor) -> float:
    """The h > 0 under which a kernel density estimate N(x_r, h^2 I) makes the latents likeliest, each explained by the
    others (leave-one-out likelihood, Habbema et al. 1974; Duin 1976).

    latents: (N, C, h, w), N >= 2, not all equal.
    """
    x = latents.flatten(1).double()
    k = min(NEAR, len(x) - 1)  # those farther away add nothing
    found = [torch.cdist(part, x).square().topk(k + 1, dim=1, largest=False).values[:, 1:] for part in x.split(1024)]
    d2 = torch.cat(found)  # (N, k); a latent's nearest is itself, at 0
    near = float(d2[:, 0].mean()) / x.shape[1]  # squared distance to the nearest other, per element

    def loss(log_h: float) -> float:
        return float(x.shape[1] * log_h - torch.logsumexp(-d2 / (2 * math.exp(2 * log_h)), dim=1).mean())

    middle = 0.5 * math.log(near)
    return math.exp(optimize.minimize_scalar(loss, bounds=(middle - 2, middle + 2), method="bounded").x)


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


def nearest(x_0: Tensor, retained: Tensor, k: int) -> Tensor:
    """The k nearest retained items of each x_0 by Euclidean distance: (B, C, h, w), (R, C, h, w) -> (B, k, C, h, w)."""
    d = torch.cdist(x_0.flatten(1), retained.flatten(1))
    return retained[d.topk(min(k, len(retained)), largest=False).indices]


def capped(target: Tensor, eps: Tensor, *, kl_cap: float) -> Tensor:
    """The target with its correction of the true noise cut to a norm of sqrt(2 kl_cap), picture by picture.

    target, eps: (B, C, h, w). ReTrack's trust region. It caps the weighted mean of the corrections once.
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


def esd_target(eps_empty: Tensor, eps_prompt: Tensor, *, strength: float) -> Tensor:
    """The full model's unconditional estimate (GUDA-C with push: an anchor's) pushed away from the forgotten prompt (or
    group)."""
    return eps_empty - strength * (eps_prompt - eps_empty)


def ascent_target(eps_full: Tensor, eps: Tensor, *, strength: float) -> Tensor:
    """The full model's estimate, moved away from the true noise.

    The gradient of ||student - target||^2 where the student is still the full model is -strength times that of the
    training loss ||student - eps||^2: gradient ascent (NegGrad, Golatkar et al. 2020), but towards a fixed point, so
    that it does not run away. To first order it is the influence of the pictures on the model.
    """
    return eps_full + strength * (eps_full - eps)


FORGET_OPERATORS = ("guda_c", "esd", "ascent")  # of text-conditional models
UNCONDITIONAL_OPERATORS = ("retrack", "shift", "esd")
