"""Formulas of unlearning as pure functions of noise estimates: L = w_f L_forget + lambda L_preserve (arXiv 2601.22651).

Every forget loss compares the student's eps with a target that needs no gradient (`forget`); targets that are no mere
estimate of the full model:

    retrack  eps_bar_t(x_t) = sum_r w_r (x_t - sqrt(ab_t) x_r) / sqrt(1 - ab_t),
             w_r = softmax_r(-||x_t - sqrt(ab_t) x_r||^2 / (2 (1 - ab_t))): the retained data's posterior mean (GUDA-U)
    esd      eps_full(x_t, t) - s * (eps_forget(x_t, t) - eps_full(x_t, t)) (Gandikota et al. 2023, eq. 4)
"""

from __future__ import annotations

import math

import torch
from scipy import optimize
from torch import Tensor

from guda_core.errors import DataError


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


LARGEST = 2**27  # numbers of the differences that are held at once, more only of one picture


def retrack_target(x_t: Tensor, retained: Tensor, alpha_bar: Tensor, *, bandwidth: float = 0.0) -> Tensor:
    """Posterior mean of eps given x_t under the empirical distribution of the retained latents (ReTrack, arXiv
    2509.13007).

    x_t: (B, C, h, w); retained: (R, C, h, w) or per-query neighbours (B, K, C, h, w); alpha_bar: (B,) in (0, 1).
    bandwidth: h >= 0, in units of the latents. With h > 0 every retained latent stands for a Gaussian N(x_r, h^2 I)
    (a kernel density estimate), v = ab h^2 + 1 - ab:

        w_r = softmax_r(-||x_t - sqrt(ab) x_r||^2 / (2 v)),   eps_bar = sum_r w_r sqrt(1 - ab) (x_t - sqrt(ab) x_r) / v

    Weights are a softmax of log-densities (never exponentials of raw distances): far outliers cannot underflow to 0/0.
    Returns (B, C, h, w) in the dtype of x_t.
    """
    if retained.dim() == 4:
        retained = retained[None].expand(len(x_t), *retained.shape)
    if len(x_t) > 1 and retained.numel() > LARGEST:
        parts = zip(*(v.split(max(1, LARGEST // retained[0].numel())) for v in (x_t, retained, alpha_bar)), strict=True)
        return torch.cat([retrack_target(*part, bandwidth=bandwidth) for part in parts])
    ab = alpha_bar.to(x_t.dtype)
    v = ab * bandwidth**2 + (1 - ab)
    diff = x_t[:, None] - ab.sqrt()[:, None, None, None, None] * retained  # (B, R, C, h, w)
    log_w = -diff.flatten(2).square().sum(dim=2) / (2 * v[:, None])  # (B, R)
    w = log_w.softmax(dim=1)[:, :, None, None, None]
    return (w * diff).sum(dim=1) * ((1 - ab).sqrt() / v)[:, None, None, None]


AT_ONCE = 1024  # pictures whose distances to all others are held at once
NEAR = 64  # others that the likelihood of a picture is made of


def likely_bandwidth(latents: Tensor) -> float:
    """The h > 0 under which a kernel density estimate N(x_r, h^2 I) makes the latents likeliest, each explained by the
    others (leave-one-out likelihood, Habbema et al. 1974; Duin 1976).

    latents: (N, C, h, w), N >= 2.

    Raises:
        DataError: every latent equals another one, so that the likelihood has no end as h becomes small.
    """
    x = latents.flatten(1).double()
    k = min(NEAR, len(x) - 1)  # those farther away add nothing
    found = [torch.cdist(part, x).square().topk(k + 1, dim=1, largest=False).values[:, 1:] for part in x.split(AT_ONCE)]
    d2 = torch.cat(found)  # (N, k); a latent's nearest is itself, at 0
    near = float(d2[:, 0].mean()) / x.shape[1]  # squared distance to the nearest other, per element
    if not near:
        raise DataError("Every training picture is there at least twice. Leave one of each, or name a bandwidth.")

    def loss(log_h: float) -> float:
        return float(x.shape[1] * log_h - torch.logsumexp(-d2 / (2 * math.exp(2 * log_h)), dim=1).mean())

    middle = 0.5 * math.log(near)
    return math.exp(optimize.minimize_scalar(loss, bounds=(middle - 2, middle + 2), method="bounded").x)


def nearest(x_0: Tensor, retained: Tensor, k: int) -> Tensor:
    """Places of the k nearest retained items of each x_0, by Euclidean distance: (B, ...), (R, ...) -> (B, k)."""
    flat, k = retained.flatten(1), min(k, len(retained))
    found = [torch.cdist(part, flat).topk(k, largest=False).indices for part in x_0.flatten(1).split(AT_ONCE)]
    return torch.cat(found)


def esd_target(eps_full: Tensor, eps_forget: Tensor, *, strength: float) -> Tensor:
    """The full model's estimate pushed away from that of the forgotten prompt or group."""
    return eps_full - strength * (eps_forget - eps_full)
